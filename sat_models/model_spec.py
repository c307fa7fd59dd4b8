"""One model of the zoo: what its row in the registry says."""

from __future__ import annotations

from dataclasses import dataclass

ORGANISATIONS = ("THUDM", "zai-org")
"""The same one on the hub, before and after its renaming."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model of the zoo. Its sizes stand in `configs/models/<name>.json`.

    Attributes:
        name: what users type, and the folder under SAT_HOME.
        summary: one line for the table.
        default_version: prompt style, where neither the user nor the checkpoint names one; None for what does not talk.
        image_size: side in pixels of the square input image, or of the image that is drawn where nobody says otherwise.
        cross_image_size: the same for the high-resolution branch; None for models without it.
        licence, source: of the weights, and where they are.
        hf_name: repository with the same weights in Hugging Face's form, without the organisation.
        owners: organisations that have it.
        originals: whole ids of repositories with the same weights in an original layout that is read.
        aliases: other names for the same weights.
        task: what it is for, one of `config.TASKS`.
        runs_in: "diffusers" for a thin entry: its network is that package's; empty for models of SAT's mixins.
        parameters: of a thin entry, which is not built to be counted.
        bundled: the weights lie in this package.
        available: False for a model whose code is still to come; loading it says so.
    """

    name: str
    summary: str
    default_version: str | None = None
    image_size: int
    cross_image_size: int | None = None
    licence: str
    source: str
    hf_name: str | None = None
    owners: tuple[str, ...] = ORGANISATIONS
    originals: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    task: str = "dialogue"
    runs_in: str = ""
    parameters: int = 0
    bundled: bool = False
    available: bool = True

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """Hugging Face ids of the same weights."""
        return tuple(f"{who}/{self.hf_name}" for who in self.owners) if self.hf_name else ()

    def repository(self, asked: str) -> str | None:
        """The hub repository to fetch for a name with a slash; None where its weights are not there in a known form."""
        if asked in self.originals:
            return asked
        return f"{asked.partition('/')[0]}/{self.hf_name}" if self.hf_name else None

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every name that means this model: its own, its aliases, its Hugging Face ids."""
        return (self.name, *self.aliases, *self.hub_ids, *self.originals)

    @property
    def folder_names(self) -> tuple[str, ...]:
        """Folders under SAT_HOME where the weights may lie."""
        return tuple(name for name in (self.name, *self.aliases) if "/" not in name)
