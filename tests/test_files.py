"""Files are there whole or not at all; JSONL of a killed run is gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from sat_models.checkpoint.output import check_output
from sat_models.errors import InputError
from sat_models.files import (
    appended_records,
    copy_file,
    draft_of,
    kept_records,
    numbered_lines,
    whole_file,
    write_json,
    write_jsonl,
    write_text,
)
from sat_models.zoo import load_pretrained, load_processor


def test_a_write_that_fails_leaves_the_former(tmp_path: Path) -> None:
    place = tmp_path / "a.txt"
    write_text(place, "before")
    for failure in (OSError, KeyboardInterrupt):
        with pytest.raises(failure), whole_file(place) as draft:
            draft.write_text("half")
            raise failure
    with pytest.raises(FileNotFoundError), whole_file(place):
        pass  # nothing was written
    assert place.read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    write_json(place, {"b": "ü"})
    copy_file(place, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == '{\n  "b": "\\u00fc"\n}\n'


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    draft_of(tmp_path / "a").write_text("half")
    write_text(tmp_path / "a", "whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "whole")]


ODD = [{"text": "line\u2028end\u2029and\u0085more"}, {"text": "half \ud83d of a pair"}, {"text": "{}\r"}]


def test_records_survive_what_else_ends_a_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "whole.jsonl", ODD)
    with appended_records(tmp_path / "grown.jsonl") as append:
        for record in ODD:
            append(record)
            assert kept_records(tmp_path / "grown.jsonl")[-1] == record, "it is there at once"
    assert kept_records(tmp_path / "whole.jsonl") == kept_records(tmp_path / "grown.jsonl") == ODD
    assert kept_records(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("cut", [b'{"text": "ab', b'{"text": "\xc3', b'{"text": "a"}'])
def test_a_line_that_was_cut_off_is_ended_and_left_out(tmp_path: Path, cut: bytes) -> None:
    """The last of these is whole but for its end, and counts."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "first"}\n{"error": "no"}\n' + cut)
    with appended_records(path) as append:
        append({"text": "next"})
    texts = [record["text"] for record in kept_records(path, whole=lambda record: "text" in record)]
    assert texts == (["first", "a", "next"] if cut.endswith(b"}") else ["first", "next"])


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\n\n\xff\n")
    with pytest.raises(InputError, match="a, line 3 is not UTF-8"):
        numbered_lines(tmp_path / "a")
    assert [*numbered_lines(tmp_path / "a", errors="replace")] == [(1, "one"), (3, "\ufffd")]


def test_nothing_is_written_for_no_file() -> None:
    with appended_records(None) as append:
        append({"text": "lost on purpose"})


def test_a_name_that_no_file_can_have_is_one_clear_line() -> None:
    for look in (load_pretrained, load_processor, lambda path: check_output(Path(path), overwrite=False, read=())):
        with pytest.raises(InputError, match=r"x…' is too long for the name of a file"):
            look("x" * 5000)
