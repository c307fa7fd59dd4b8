"""Captions of many pictures: what is asked, what is written, and going on after an interruption."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sat_models import zoo
from sat_models.commands import caption as command
from sat_models.errors import ConfigError, InputError
from sat_models.evaluation.identity import model_identity
from sat_models.generation.sampling import SamplingOptions
from sat_models.serving import bulk
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cogvlm-mini"
OPTIONS = SamplingOptions(max_new_tokens=5)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained(GOLDEN, device="cpu", dtype="float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, one of them in a subfolder, and a file that is none."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name, colour in (("a.png", "red"), ("b.JPG", "blue"), ("more/c.png", "green")):
        Image.new("RGB", (60, 60), colour).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The output by picture."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({bulk._key(record) for record in records}) == len(records)
    return {record["image"]: record for record in records}


def run(vlm: VLM, source: Path, output: Path, **kwargs: Any) -> tuple[int, int]:
    made_by = model_identity(vlm, str(GOLDEN))
    kwargs = {"options": OPTIONS, "progress": False, "made_by": made_by, **kwargs}
    return bulk.caption(vlm, source, output, query="What is it?", **kwargs)


def test_a_folder_is_answered_as_one_by_one(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.jsonl"
    assert run(vlm, folder, output, max_rows=2, version="chat") == (3, 0)
    written = read(output)
    assert set(written) == {"a.png", "b.JPG", "more/c.png"}
    for name, record in written.items():
        alone = vlm.generate(folder / name, "What is it?", version="chat", max_new_tokens=5)
        assert (record["text"], record["finish_reason"]) == (alone.text, alone.finish_reason)
        assert record["query"] == "What is it?"


def test_a_second_run_does_what_is_missing_or_failed(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    (folder / "broken.png").write_bytes(b"no picture")
    assert run(vlm, folder, output) == (4, 1)
    assert "error" in read(output)["broken.png"]
    lines = output.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if '"a.png"' in line or "broken" in line]
    output.write_text("\n".join(kept) + '\n{"image": "b.JPG", "te', encoding="utf-8")
    part = output.with_name("out.jsonl.1.part")
    part.write_text(json.dumps({"image": "more/c.png", "query": "What is it?", "text": "kept"}) + "\n")
    Image.new("RGB", (60, 60), "grey").save(folder / "broken.png")
    assert run(vlm, folder, output) == (2, 0)
    written = read(output)
    assert len(written) == 4 and all("text" in record for record in written.values())
    assert written["more/c.png"]["text"] == "kept"
    assert not part.exists()
    assert run(vlm, folder, output) == (0, 0)


def test_lines_keep_their_fields_and_may_ask_for_themselves(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    source, output = folder / "list.jsonl", tmp_path / "out.jsonl"
    asked = [
        {"image": "a.png", "id": 7, "label": "red"},
        {"image": "a.png", "query": "Where is it?"},
        {"image": "a.png", "query": "Which colour?"},
        {"image": None, "query": "Who are you?"},
        {"image": "missing.png"},
    ]
    source.write_text("".join(json.dumps(line) + "\n\n" for line in asked), encoding="utf-8")
    assert run(vlm, source, output) == (5, 1)
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    by_query = {record["query"]: record for record in records if "text" in record}
    assert set(by_query) == {"What is it?", "Where is it?", "Which colour?", "Who are you?"}
    assert (by_query["What is it?"]["id"], by_query["What is it?"]["label"]) == (7, "red")
    assert by_query["Who are you?"]["text"] == vlm.generate(None, "Who are you?", max_new_tokens=5).text
    assert any("missing.png" in record.get("error", "") for record in records)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"image": "a.png"\n', "line 1 is no JSON"),
        ('{"query": "What?"}\n', "line 1 must be a JSON object with an 'image'"),
        ('{"image": 3}\n', "'image' is 3; it must be a path, a URL or null"),
        ('{"image": "a.png"}\n{"image": "a.png"}\n', "asks the same twice"),
        ('{"image": "a.png", "query": "a", "query": "b"}', "line 1: an object has the key 'query' twice"),
        ("[" * 100_000, "line 1 is no JSON"),
        ('{"image": "a.png", "id": ' + "9" * 5000 + "}", "line 1 is no JSON"),
        ("\n", "holds nothing to do"),
    ],
)
def test_bad_lists_are_refused_in_words(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "list.jsonl").write_text(lines)
    with pytest.raises(InputError, match=message):
        bulk.read_tasks(tmp_path / "list.jsonl", "What is it?")


CASES = ROOT / "tests" / "cases" / "requests"


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_one_line_that_no_tokenizer_reads_is_an_error_of_its_own(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    """Half of a surrogate pair in a question, or in a field that is only copied."""
    (folder / "1.png").write_bytes((folder / "a.png").read_bytes())
    source, output = folder / "list.jsonl", tmp_path / "out.jsonl"
    source.write_bytes((CASES / "caption_surrogate.jsonl").read_bytes())
    assert run(vlm, source, output) == (3, 1)
    (failed,) = [record for record in records_of(output) if "error" in record]
    assert "half of a surrogate pair" in failed["error"] and failed["query"] == "How many \ud83d shapes?"
    source.write_text('{"image": "1.png", "note": "\\udc00", "id": "\\ud83d"}\n{"image": "\\ud800.png"}\n', "utf-8")
    output.unlink()
    assert run(vlm, source, output) == (2, 1)
    answered = next(record for record in records_of(output) if "text" in record)
    assert (answered["note"], answered["id"]) == ("\udc00", "\ud83d")
    assert run(vlm, source, output) == (1, 1), "what was answered is not asked again, what failed is"


def test_line_ends_in_strings_end_no_line(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    """JSON strings may hold U+2028, U+2029 and U+0085 as they are."""
    (folder / "examples").mkdir()
    for name in ("1.png", "2.png"):
        (folder / "examples" / name).write_bytes((folder / "a.png").read_bytes())
    source = folder / "list.jsonl"
    source.write_bytes((CASES / "bulk_u2028.jsonl").read_bytes())
    assert run(vlm, source, tmp_path / "first.jsonl") == (2, 0)
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    lines = [{"image": "a.png", "id": odd}, {"image": "a.png", "query": f"What{odd}?"}]
    source.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(x, ensure_ascii=False) for x in lines).encode())
    output = tmp_path / "out.jsonl"
    assert run(vlm, source, output) == (2, 0)
    assert [record.get("id") for record in records_of(output)].count(odd) == 1
    assert run(vlm, source, output) == (0, 0), "the output is read as it was written"


def test_an_output_cut_inside_a_character_is_gone_on_with(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run(vlm, folder, output) == (3, 0)
    output.write_bytes(output.read_bytes() + '{"image": "中'.encode()[:-1])
    assert run(vlm, folder, output) == (0, 0)
    assert len(records_of(output)) == 3


def test_images_by_data_url(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode((folder / "a.png").read_bytes()).decode()
    (folder / "list.jsonl").write_text(json.dumps({"image": url}) + "\n")
    assert run(vlm, folder / "list.jsonl", tmp_path / "out.jsonl") == (1, 0)


def test_an_output_that_cannot_be_written_is_found_first(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file" / "out.jsonl", Path("/dev/null")):
        with pytest.raises(InputError, match="cannot be written"):
            run(vlm, folder, output)


def test_a_list_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_bytes(b'{"image": "a.png"}\n{"image": "\xe9.png"}\n')
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        bulk.read_tasks(tmp_path / "list.jsonl", "What is it?")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; give a folder"):
        bulk.read_tasks(tmp_path / "nowhere", "What is it?")


@pytest.mark.parametrize("wrong", ["source", "output"])
def test_what_is_wrong_is_found_before_weights_are_read(
    wrong: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(zoo, "load_pretrained", load)
    output = tmp_path / "out.jsonl"
    if wrong == "source":
        given, message = [tmp_path / "nowhere", output], "does not exist"
    else:
        given, message = [folder, tmp_path], "cannot be written"
    with pytest.raises(InputError, match=message):
        command.main([*map(str, given), "--device", "cpu"])
    with pytest.raises(AssertionError):
        command.main([str(folder), str(output), "--device", "cpu"])
    assert not output.exists(), "a model that cannot be loaded leaves no empty output"


def test_two_runs_do_not_write_to_one_output(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is told before it reads weights; one that was killed holds nothing."""
    read: list[str] = []
    monkeypatch.setattr(zoo, "load_pretrained", lambda name, **_: read.append(name) or load_pretrained(GOLDEN))
    output = tmp_path / "new" / "out.jsonl"
    asked = [str(folder), str(output), "--from_pretrained", str(GOLDEN), "--device", "cpu", "--max_new_tokens", "2"]
    holder = "from sat_models.checkpoint.lock import FileLock; from pathlib import Path; "
    holder += f"lock = FileLock(Path({str(output)!r}), 'x'); print('held', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=rf"out\.jsonl is in use by another run \(process {other.pid} on .*Wait for"):
        command.main(asked)
    assert not read and not output.exists()
    other.kill()
    other.communicate()
    assert command.main(asked) == 0 and len(output.read_text().splitlines()) == 3
    assert command.main(asked) == 0, "and a run that has ended holds nothing either"


def test_an_answer_to_something_else_never_passes_for_todays(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    """An image replaced in place, an id with another question or image, a copied field that changed; order is free."""
    source, output = folder / "list.jsonl", tmp_path / "out.jsonl"
    asked = [
        {"id": 1, "image": "a.png", "query": "Where?", "note": "old"},
        {"id": 2, "image": "b.JPG"},
        {"id": 3, "image": "a.png"},
        {"image": "more/c.png", "text": "of the input", "error": "of the input"},
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in asked))
    assert run(vlm, source, output) == (4, 0)
    assert all(record["text"] != "of the input" and "error" not in record for record in records_of(output))
    Image.new("RGB", (60, 60), "white").save(folder / "more/c.png")
    asked[0] |= {"note": "new"}
    asked[1] |= {"query": "What else is it?"}
    asked[2] |= {"image": "b.JPG"}
    source.write_text("".join(json.dumps(line) + "\n" for line in reversed(asked)))
    assert run(vlm, source, output) == (3, 0)
    by_id = {record.get("id"): record for record in records_of(output)}
    assert len(records_of(output)) == 4 and by_id[1]["note"] == "new" and by_id[3]["image"] == "b.JPG"
    assert by_id[2]["text"] == vlm.generate(folder / "b.JPG", "What else is it?", max_new_tokens=5).text
    assert by_id[None]["text"] == vlm.generate(folder / "more/c.png", "What is it?", max_new_tokens=5).text
    (folder / "more/c.png").unlink()
    assert run(vlm, source, output) == (1, 1), "an image that is gone has no answer"
    assert run(vlm, source, output) == (1, 1), "a field 'text' of the input makes no error an answer"


def test_another_model_or_setting_wants_another_output(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run(vlm, folder, output) == (3, 0)
    before = output.read_bytes()
    other = load_pretrained(GOLDEN, device="cpu", dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"answers of other settings \(dtype 'float32' -> 'bfloat16'\)"):
        run(other, folder, output)
    with pytest.raises(ConfigError, match="version None -> 'vqa'"):
        run(vlm, folder, output, version="vqa")
    with pytest.raises(ConfigError, match="decoding"):
        run(vlm, folder, output, options=SamplingOptions(max_new_tokens=6))
    with pytest.raises(ConfigError, match="decoding"):  # before weights are read
        command.main([str(folder), str(output), "--from_pretrained", "no such model", "--max_new_tokens", "6"])
    assert output.read_bytes() == before
    bulk.settings_file(output).unlink()
    with pytest.raises(ConfigError, match=r"no out\.jsonl\.settings\.json beside it says what made them"):
        run(vlm, folder, output)
    output.unlink()
    assert run(other, folder, output) == (3, 0), "an output that was removed is begun anew"


@pytest.mark.slow
def test_processes_share_the_pictures(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    """Two processes with a model each, through the script; then again, with nothing to do."""
    output = tmp_path / "out.jsonl"
    asked = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    asked += [str(ROOT / "scripts" / "caption.py"), str(folder), str(output), "--from_pretrained", str(GOLDEN)]
    asked += ["--max_new_tokens", "5", "--query", "What is it?"]
    for expected in ("3 written", "0 written"):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        assert expected in done.stderr
        written = read(output)
        assert {name: record["text"] for name, record in written.items()} == {
            name: vlm.generate(folder / name, "What is it?", max_new_tokens=5).text for name in written
        }
        assert len(written) == 3 and bulk.parts_of(output) == []
