"""The chain of entries: what tampering it sees, who wins a race, what a killed writer leaves; on disk and on S3."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from itertools import pairwise

import pytest
from botocore.exceptions import ClientError
from pyarrow import fs

import victims
from bucket import endpoint, get, names, put, root, s3  # noqa: F401  (fixtures among them)
from data_pipeline import blobs
from data_pipeline.blobs import BucketBlobs, blobs_at
from data_pipeline.config import canonical_json
from data_pipeline.errors import RunError, StoreError
from rl.judging.chain import NOTHING, Chain, Draft, Head

FOLDER = victims.FOLDER
LENGTH = 5


def name_of(number: int) -> str:
    return f"{FOLDER}/{number:08}.json"


def filled(root: str, length: int = LENGTH) -> Chain:
    chain = Chain(root, FOLDER)
    for n in range(length):
        chain.append("counted", {"n": n, "third": n / 3})
    return chain


def refusal(root: str, known: Head | None = None) -> str:
    """The one line with which verifying and reading fail alike; `entries` knows no head from earlier days."""
    with pytest.raises(RunError) as verified:
        Chain(root, FOLDER).verify(known)
    line = str(verified.value)
    assert line.startswith(f"{root}/{FOLDER}: ")
    assert "\n" not in line
    if known is None:
        with pytest.raises(RunError) as read:
            Chain(root, FOLDER).entries()
        assert str(read.value) == line
    return line


# What is written


def test_chain_entry_is_canonical_json_and_names_the_hash_of_the_one_before(root):
    chain = Chain(root, FOLDER)
    first, second = chain.append("a", {"x": (1, 2.5)}), chain.append("b", {"y": None})
    assert names(root) == [name_of(1), name_of(2)]
    raw = [get(root, name_of(number)) for number in (1, 2)]
    trees = [json.loads(body) for body in raw]
    assert [list(tree) for tree in trees] == [["at", "body", "kind", "number", "previous"]] * 2
    assert raw == [canonical_json(tree) for tree in trees]
    assert trees[0]["previous"] == NOTHING == "0" * 64
    assert trees[1]["previous"] == hashlib.sha256(raw[0]).hexdigest() == first.sha256 == second.previous
    assert (first.number, first.kind, first.body) == (1, "a", {"x": [1, 2.5]})
    assert trees[0]["at"].endswith("+00:00")
    assert Chain(root, FOLDER).entries() == [first, second]
    assert chain.head() == chain.verify() == Head(2, second.sha256)


def test_chain_that_is_empty_has_the_head_nothing(tmp_path):
    root = str(tmp_path)
    assert Chain(root, FOLDER).verify() == Chain(root, FOLDER).head() == Head(0, NOTHING)
    assert Chain(root, FOLDER).entries() == []


def test_chain_sees_the_entries_of_another_writer_when_asked_again(root):
    ours, theirs = Chain(root, FOLDER), Chain(root, FOLDER)
    ours.append("a", {})
    assert theirs.append("b", {}).number == 2
    assert [entry.kind for entry in ours.entries()] == ["a", "b"]
    assert ours.append("c", {}).number == 3
    assert [entry.kind for entry in theirs.entries()] == ["a", "b", "c"]


def test_chain_append_reads_nothing_unless_its_number_is_taken(root, monkeypatch):
    chain, other = filled(root), Chain(root, FOLDER)
    read = []
    kind = type(chain.blobs)
    monkeypatch.setattr(kind, "get", lambda self, name, get=kind.get: read.append(name) or get(self, name))
    monkeypatch.setattr(
        kind, "sizes", lambda self, folder, sizes=kind.sizes: read.append(folder) or sizes(self, folder)
    )
    chain.append("quiet", {})
    assert read == []
    other.append("theirs", {})
    read.clear()
    chain.append("ours", {})
    assert read == [name_of(7), name_of(8)]


def test_chain_append_of_what_is_no_json_is_refused_and_leaves_nothing(tmp_path):
    root = str(tmp_path)
    for body in ({"x": float("nan")}, {"x": {1, 2}}):
        with pytest.raises(RunError, match="'odd' cannot be appended"):
            Chain(root, FOLDER).append("odd", body)
    assert names(root) == []


def test_chain_append_if_is_asked_again_with_what_came_between(root):
    ours, theirs = Chain(root, FOLDER), Chain(root, FOLDER)
    ours.append("first", {})
    seen = []

    def draft(entries):
        seen.append([entry.kind for entry in entries])
        if len(seen) == 1:
            theirs.append("between", {})
        return Draft("late", {"after": len(entries)})

    entry = ours.append_if(draft)
    assert seen == [["first"], ["first", "between"]]
    assert (entry.number, entry.body) == (3, {"after": 2})
    assert ours.append_if(lambda entries: None) is None
    assert ours.verify().number == 3


def test_chain_head_can_be_written_down(tmp_path):
    root = str(tmp_path)
    head = filled(root).head()
    assert Head.of(head.text) == head
    for text in ("", "5", f"5:{'g' * 64}", f"5:{'a' * 63}", f"-5:{'a' * 64}", f"5:{'a' * 64}\n"):
        with pytest.raises(RunError, match="NUMBER:SHA256"):
            Head.of(text)


# Tampering


@pytest.mark.parametrize("number", range(1, LENGTH + 1))
def test_chain_with_an_altered_byte_is_refused_wherever_it_is(tmp_path, number):
    root = str(tmp_path)
    head = filled(root).head()
    body = get(root, name_of(number))
    for at in range(len(body)):
        put(root, name_of(number), body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
        line = refusal(root, head)
        assert any(f"entry {suspect} ({suspect:08}.json)" in line for suspect in (number, number + 1)), line
    put(root, name_of(number), body)
    assert Chain(root, FOLDER).verify(head) == head


def test_chain_with_an_altered_byte_on_either_place_is_refused(root):
    head = filled(root).head()
    put(root, name_of(3), get(root, name_of(3)).replace(b'"n":2', b'"n":7'))
    line = refusal(root)
    assert "entry 4 (00000004.json) does not follow entry 3: one of the two was altered or exchanged" in line
    assert refusal(root, head) == line


@pytest.mark.parametrize("gone", range(1, LENGTH))
def test_chain_without_one_of_its_entries_is_refused(tmp_path, gone):
    root = str(tmp_path)
    filled(root)
    put(root, name_of(gone), None)
    assert f"entry {gone} (0000000{gone}.json) is missing, though entry 5 is there" in refusal(root)


def test_chain_with_a_removed_entry_closed_up_is_refused(tmp_path):
    root = str(tmp_path)
    filled(root)
    for number in (3, 4):
        put(root, name_of(number), get(root, name_of(number + 1)))
    put(root, name_of(5), None)
    assert "entry 3 (00000003.json) says that it is entry 4: it was moved or renumbered" in refusal(root)


def test_chain_with_a_removed_entry_closed_up_and_renumbered_is_refused(tmp_path):
    root = str(tmp_path)
    filled(root)
    for number in (3, 4):
        tree = json.loads(get(root, name_of(number + 1)))
        put(root, name_of(number), canonical_json({**tree, "number": number}))
    put(root, name_of(5), None)
    assert "entry 3 (00000003.json) does not follow entry 2" in refusal(root)


def test_chain_with_two_entries_swapped_is_refused(tmp_path):
    root = str(tmp_path)
    filled(root)
    second, fourth = get(root, name_of(2)), get(root, name_of(4))
    put(root, name_of(2), fourth)
    put(root, name_of(4), second)
    assert "entry 2 (00000002.json) says that it is entry 4" in refusal(root)


def test_chain_with_the_first_entries_cut_off_is_refused(tmp_path):
    root = str(tmp_path)
    filled(root)
    for number in (1, 2, 3):
        tree = json.loads(get(root, name_of(number + 2)))
        put(root, name_of(number), canonical_json({**tree, "number": number}))
    assert "entry 1 (00000001.json) does not begin a chain" in refusal(root)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body[:-1],
        lambda body: b"",
        lambda body: body + b"\n",
        lambda body: b"[" * 100_000,
        lambda body: b"[1]",
        lambda body: json.dumps(json.loads(body)).encode(),
        lambda body: canonical_json({**json.loads(body), "more": 1}),
        lambda body: canonical_json({**json.loads(body), "at": "2026-01-01T00:00:00"}),
        lambda body: canonical_json({**json.loads(body), "number": True}),
        lambda body: canonical_json({**json.loads(body), "body": []}),
    ],
)
def test_chain_with_an_entry_that_no_chain_writes_is_refused(tmp_path, spoil):
    root = str(tmp_path)
    filled(root)
    put(root, name_of(5), spoil(get(root, name_of(5))))
    assert "entry 5 (00000005.json) is not as a chain writes it" in refusal(root)


def test_chain_with_an_entry_of_another_chain_is_refused(tmp_path):
    root = str(tmp_path)
    filled(root)
    filled(f"{root}/other")
    put(root, name_of(5), get(f"{root}/other", name_of(5)))
    assert "entry 5 (00000005.json) does not follow entry 4" in refusal(root)


def test_chain_with_a_foreign_file_is_refused(tmp_path):
    root = str(tmp_path)
    filled(root, 1)
    for name in ("notes.txt", "00000006.json~", "6.json", "00000000.json", "000000006.json"):
        put(root, f"{FOLDER}/{name}", b"{}")
        assert f"{name} is foreign" in refusal(root)
        put(root, f"{FOLDER}/{name}", None)


def test_chain_on_s3_with_the_object_that_the_console_makes_for_a_folder_is_whole(s3):
    chain = filled("s3://market/project", 2)
    s3.put_object(Bucket="market", Key=f"project/{FOLDER}/", Body=b"")
    assert chain.verify().number == 2


def test_chain_whose_end_was_cut_off_is_told_from_a_known_head_only(root):
    chain = filled(root)
    head = chain.head()
    for number in (4, 5):
        put(root, name_of(number), None)
    assert Chain(root, FOLDER).verify().number == 3, "nobody who was not there can know"
    assert "entry 5 (00000005.json) was there once: entries 4 to 5 were cut off the end" in refusal(root, head)
    with pytest.raises(RunError, match=r"entry 4 .* is gone, and it was there before; entry 3 is the last"):
        chain.entries()
    with pytest.raises(RunError, match="entries 4 to 5 were cut off the end"):
        chain.verify()


def test_chain_written_anew_from_some_entry_on_is_told_from_a_known_head(tmp_path):
    root = str(tmp_path)
    chain = filled(root)
    head = chain.head()
    for number in (4, 5):
        put(root, name_of(number), None)
    forger = Chain(root, FOLDER)
    for n in range(4):
        forger.append("counted", {"n": 100 + n})
    assert Chain(root, FOLDER).verify().number == 7
    assert "entry 5 (00000005.json) is not the one that was there" in refusal(root, head)
    with pytest.raises(RunError, match="is not the one that was there"):
        chain.verify()


def test_chain_verify_reads_again_what_was_read_before(tmp_path):
    root = str(tmp_path)
    chain = filled(root)
    chain.entries()
    put(root, name_of(2), get(root, name_of(2)).replace(b'"n":1', b'"n":9'))
    assert len(chain.entries()) == LENGTH
    with pytest.raises(RunError, match="does not follow entry 2"):
        chain.verify()


def test_chain_that_is_damaged_is_not_appended_to(root):
    filled(root)
    put(root, name_of(3), None)
    with pytest.raises(RunError, match=r"entry 3 .* is missing"):
        Chain(root, FOLDER).append("more", {})
    assert name_of(6) not in names(root)


# Races and deaths


def test_chain_of_two_writers_at_once_loses_nothing(root):
    rounds = 20
    numbers = victims.race(*[("append_many", root, who, str(rounds)) for who in ("left", "right")])
    assert sorted([*numbers[0], *numbers[1]]) == list(range(1, 2 * rounds + 1))
    entries = Chain(root, FOLDER).entries()
    assert Chain(root, FOLDER).verify().number == 2 * rounds
    for who, told in zip(("left", "right"), numbers, strict=True):
        assert [entry.number for entry in entries if entry.body["who"] == who] == told
        assert [entry.body["n"] for entry in entries if entry.body["who"] == who] == list(range(rounds))
    writers = [entry.body["who"] for entry in entries]
    assert sum(a != b for a, b in pairwise(writers)) > 1, "they did not meet"
    assert all(name.startswith(FOLDER) for name in names(root))


def test_chain_writer_killed_at_every_operation_leaves_whole_entries(root):
    kills = victims.run("kill_append", root)
    assert kills >= 3
    lengths = [len(Chain(f"{root}/{k}", FOLDER).entries()) for k in range(1, kills + 2)]
    assert lengths == sorted(lengths), "once the entry is there, dying changes nothing"
    assert (lengths[0], lengths[-1]) == (1, 2)
    assert Chain(f"{root}/1", FOLDER).append("more", {}).number == 2


def test_chain_writer_killed_at_random_leaves_all_that_it_was_told_was_written(root):
    rounds = 4 if root.startswith("s3://") else 12
    told = victims.run("kill_any_time", root, str(rounds))
    numbers = [entry.number for entry in Chain(root, FOLDER).entries()]
    assert len(told) == len(set(told)) >= rounds
    assert set(told) <= set(numbers)
    assert len(numbers) - len(told) <= rounds, "at most one entry was under way each time"
    assert Chain(root, FOLDER).verify() == Chain(root, FOLDER).head()


# put_new


def test_put_new_puts_once_and_keeps_what_is_there(root):
    place = blobs_at(root)
    assert place.put_new("a/b", b"first") is True
    assert place.put_new("a/b", b"second") is False
    assert blobs_at(root).put_new("a/b", b"first") is False, "also where the bytes are the same"
    assert get(root, "a/b") == b"first"
    assert place.holds("a/b", hashlib.sha256(b"first").hexdigest())
    assert names(root) == ["a/b"]


def test_put_new_on_a_disk_without_hard_links_is_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError, match=r"cannot write a/b: this disk makes no hard links.*; choose a folder"):
        blobs_at(str(tmp_path)).put_new("a/b", b"first")
    assert names(str(tmp_path)) == []


def test_put_new_on_a_disk_that_fails_says_why(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError, match="cannot write a/b: No space left on device; free space there"):
        blobs_at(str(tmp_path)).put_new("a/b", b"first")
    assert names(str(tmp_path)) == []


def test_put_new_whose_link_was_made_but_answered_as_if_it_were_there_is_ours(tmp_path, monkeypatch):
    link = os.link

    def lose_the_answer(scratch, target):
        link(scratch, target)
        link(scratch, target)

    monkeypatch.setattr(os, "link", lose_the_answer)
    place = blobs_at(str(tmp_path))
    assert place.put_new("a/b", b"first") is True
    assert place.put_new("a/b", b"second") is False


def test_put_new_elsewhere_looks_then_puts():
    place = blobs_at("root", fs._MockFileSystem())
    assert place.put_new("a/b", b"first") is True
    assert place.put_new("a/b", b"second") is False
    assert place.get("a/b") == b"first"


class Answering:
    """A client whose conditional puts go wrong."""

    def __init__(self, client, put):
        self._client, self.put_object = client, put

    def __getattr__(self, name):
        return getattr(self._client, name)


def answering(put_object) -> BucketBlobs:
    place = blobs_at("s3://market/project")
    place._client = Answering(place._client, lambda **what: put_object(place, **what))
    client = place._client._client
    place.really = client.put_object
    return place


def failed(status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )


def test_put_new_on_s3_whose_answer_was_lost_is_ours(s3):
    def sent_twice(place, **what):
        place.really(**what)
        place.really(**what)

    assert answering(sent_twice).put_new("a/b", b"first") is True
    assert answering(sent_twice).put_new("a/b", b"first") is False, "the same bytes, but another's"


def test_put_new_on_s3_that_meets_another_in_the_act_is_sent_again(s3, monkeypatch):
    monkeypatch.setattr(blobs, "_CONFLICT_PAUSE_S", 0.0)
    left = [failed(409, "ConditionalRequestConflict")] * 2

    def busy(place, **what):
        if left:
            raise left.pop()
        return place.really(**what)

    assert answering(busy).put_new("a/b", b"first") is True
    assert left == []

    def always(place, **what):
        raise failed(409, "ConditionalRequestConflict")

    with pytest.raises(StoreError, match=r"cannot write a/c: no \(ConditionalRequestConflict\)"):
        answering(always).put_new("a/c", b"first")


def test_put_new_on_a_server_that_overwrites_all_the_same_is_refused(s3):
    def ignorant(place, IfNoneMatch, **what):
        assert IfNoneMatch == "*"
        return place.really(**what)

    with pytest.raises(StoreError, match="does not heed If-None-Match"):
        answering(ignorant).put_new("a/b", b"first")
