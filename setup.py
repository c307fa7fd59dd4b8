"""Packaging. `requirements.txt` lists the same base dependencies; a test keeps the two in step."""

import re
import zlib
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "sat_models" / "__init__.py").read_text(encoding="utf-8"))[1]

# Bounds are what the tests ran with; docs/architecture.md says why each package is here.
INSTALL = [
    "torch>=2.11,<2.15",
    "SwissArmyTransformer==0.4.12",
    "deepspeed>=0.19.8,<0.20",
    "sentencepiece>=0.2.0,<0.3",
    "tokenizers>=0.22,<0.24",
    "tiktoken>=0.9,<1",
    "pillow>=11,<14",
    "safetensors>=0.5,<1",
    "numpy>=1.26,<3",
    "huggingface_hub>=1.0,<3",
    "tqdm>=4.66,<5",
    "spacy>=3.8,<3.9",
    "pyyaml>=6,<7",
]
EXTRAS = {
    "serve": ["gradio>=6,<7", "fastapi>=0.115,<1", "uvicorn>=0.30,<1", "prometheus-client>=0.20,<1"],
    "eval": ["pycocoevalcap>=1.2,<2"],
    "plot": ["matplotlib>=3.10,<4"],
    "track": ["tensorboardX>=2.6,<3", "wandb>=0.20,<1", "swanlab>=0.10,<0.11"],
    "gguf": ["gguf>=0.17,<1"],
    "modelscope": ["modelscope>=1.30,<2"],
    "quant": ["bitsandbytes>=0.50,<0.51"],
    "draw": ["transformers>=5.17,<6", "diffusers>=0.42,<0.43"],
    "film": ["av>=18,<19", "peft>=0.21,<0.22"],
    "strict": ["llguidance>=1.9,<2"],
    "test": [
        "pytest>=9,<10",
        "pytest-xdist>=3.8,<4",
        "hypothesis>=6.100,<7",
        "ruff>=0.17,<0.18",
        "openai>=2,<4",
        "playwright>=1.50,<2",
        "xllamacpp>=2026.10,<2027",
        "triton>=3.6,<4; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "jsonschema>=4.23,<5",
    ],
    "data": ["datasets>=5.2,<6"],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10"],
}
USED = ("serve", "eval", "plot", "quant", "draw", "film", "data", "strict", "gguf")
EXTRAS["all"] = [line for extra in (*USED, "track", "modelscope") for line in EXTRAS[extra]]
# A test is skipped for absent hardware only: what the tests need comes with them.
EXTRAS["test"] += [line for extra in (*USED, "docs") for line in EXTRAS[extra]]


def packaged_configs() -> list[str]:
    """`configs/` is a top-level folder of the repository and package data of the wheel (`sat_models/configs`)."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*") if path.is_dir())


PACKAGES = find_packages(include=["sat_models", "sat_models.*", "mixins", "mixins.*"])
CONFIG_PACKAGES = {f"sat_models.{name.replace('/', '.')}": name for name in ["configs", *packaged_configs()]}

# Plain libraries, called through ctypes (`sat_models/c_library.py`): no Python header is needed. Where they cannot be
# compiled, the package is installed without them, and torch's operators do their work on a CPU.
KERNEL_SOURCES = (
    "sat_models/generation/steps/native.c",
    "sat_models/models/common/attention_kernels.c",
    "sat_models/models/common/quantised_kernels.c",
)


def kernel(source: str) -> Extension:
    """The library of a C file, which carries the checksum of its source and of its parts (NAME_*.h)."""
    package, _, name = source.removesuffix(".c").rpartition("/")
    parts = sorted(str(path.relative_to(ROOT)) for path in (ROOT / package).glob(f"{name}_*.h"))
    whole = b"".join((ROOT / part).read_bytes() for part in (source, *parts))
    return Extension(
        f"{package.replace('/', '.')}._{name}",
        [source],
        depends=parts,
        define_macros=[("SOURCE", f"{zlib.crc32(whole)}u")],
        extra_compile_args=[
            "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math",
            "-Wno-psabi",
        ],
        extra_link_args=["-fopenmp", "-lm"],
        optional=True,
    )  # fmt: skip


setup(
    name="cogvlm-sat-zoo",
    version=VERSION,
    description="A zoo of vision-language models made of SwissArmyTransformer mixins: CogVLM, CogAgent and more",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=[*PACKAGES, *CONFIG_PACKAGES],
    package_dir=CONFIG_PACKAGES,
    ext_modules=[kernel(source) for source in KERNEL_SOURCES],
    package_data={
        "sat_models": ["py.typed", "assets/**/*", "generation/steps/*.c", "models/common/*.[ch]"],
        "mixins": ["py.typed"],
        **{name: ["*.json", "*.yaml"] for name in CONFIG_PACKAGES},
    },
    include_package_data=False,
    install_requires=INSTALL,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "sat-chat=sat_models.serving.cli:main",
            "sat-zoo=sat_models.zoo.table:command",
            "sat-convert=sat_models.commands.convert:command",
            "sat-merge=sat_models.commands.merge:command",
            "sat-merge-lora=sat_models.commands.merge:lora_command",
            "sat-evaluate=sat_models.commands.evaluate:command",
            "sat-caption=sat_models.commands.caption:command",
            "sat-compose=sat_models.commands.compose:command",
            "sat-draw=sat_models.commands.draw:command",
            "sat-film=sat_models.commands.film:command",
            "sat-validate=sat_models.commands.validate:command",
            "sat-split=sat_models.commands.split:command",
            "sat-bench=sat_models.commands.bench:command",
            "sat-bench-peers=sat_models.commands.bench_peers:command",
            "sat-bench-server=sat_models.commands.bench_server:command",
            "sat-prove-served=sat_models.commands.prove_served:command",
            "sat-make-dataset=sat_models.commands.make_dataset:command",
            "sat-train-tiny=sat_models.commands.train_tiny:command",
            "sat-train-tiny-painter=sat_models.commands.train_tiny_painter:command",
            "sat-train-tokenizer=sat_models.commands.train_tokenizer:command",
            "sat-plot-evaluation=sat_models.commands.plot_evaluation:command",
            "sat-quantisation=sat_models.commands.quantisation:command",
            "sat-numerics=sat_models.commands.numerics:command",
            "sat-measure-kernels=sat_models.commands.measure_kernels:command",
            "sat-measure-loading=sat_models.commands.measure_loading:command",
            "sat-measure-memory=sat_models.commands.measure_memory:command",
            "sat-measure-packing=sat_models.commands.measure_packing:command",
            "sat-measure-strict=sat_models.commands.measure_strict:command",
            "sat-finetune=sat_models.training.finetune:command",
            "sat-serve=sat_models.serving.server:main",
            "sat-web=sat_models.serving.web:main",
        ]
    },
)
