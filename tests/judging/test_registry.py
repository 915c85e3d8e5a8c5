"""The registry of bundles: every step and refusal, overrides, races, deaths and damage; on disk and on S3."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import victims
from bucket import endpoint, get, names, put, root, s3  # noqa: F401  (fixtures among them)
from data_pipeline.errors import BundleError, RunError
from data_pipeline.scaling import Scaler
from envs.bundle import FeatureEntry, Manifest, PolicyEntry, Verdict, bundle_files, golden_of, read_bundle, write_bundle
from envs.contract import PORTFOLIO_FEATURES, ActionKind
from envs.costs import Costs
from envs.limits import Limits
from envs.lstm import LstmPolicy
from rl.judging.chain import Chain
from rl.judging.registry import Registry

UNITS, FEATURES, WINDOW = 4, 3, 5
WHY = "rehearsal of the desk, paper only"


def bundle_at(folder: Path, seed: int = 0, decision: str = "promote", name: str = "toy") -> str:
    """Writes the bundle of a small policy that never learnt; returns its version."""
    rng = np.random.default_rng(seed)
    shapes = {
        "lstm.weight_ih": (4 * UNITS, FEATURES),
        "lstm.weight_hh": (4 * UNITS, UNITS),
        "lstm.bias": (4 * UNITS,),
        "trunk.weight": (UNITS, UNITS + len(PORTFOLIO_FEATURES)),
        "trunk.bias": (UNITS,),
        "actor.weight": (1, UNITS),
        "actor.bias": (1,),
    }
    weights = {part: rng.normal(0, 1, shape).astype(np.float32) for part, shape in shapes.items()}
    scaler = Scaler(median=(0.0,) * FEATURES, spread=(1.0,) * FEATURES)
    policy = LstmPolicy(name, WINDOW, weights, scaler, ActionKind.CONTINUOUS)
    features = rng.normal(0, 1, (WINDOW, 2, FEATURES)).astype(np.float32)
    portfolio = np.zeros((2, len(PORTFOLIO_FEATURES)), np.float32)
    golden = golden_of(policy, features, portfolio, [policy.outputs(features, portfolio)])
    manifest = Manifest(
        features=tuple(FeatureEntry(name=f"f{number}", look_back=1) for number in range(FEATURES)),
        feature_schema_hash="",
        policy=PolicyEntry.describing(policy),
        symbols=("AAA", "BBB"),
        exchange="XNYS",
        limits=Limits(),
        costs=Costs(),
        data={"panel": "b7c1"},
        config={},
        config_hash="c0ffee",
        code="swing-rl 0.1.0",
        results={},
        verdict=Verdict(decision=decision, reasons=("It beats buy-and-hold by 0.1.",)),
    )
    return write_bundle(folder, manifest, policy, golden, {"validation.json": b"{}"}).version


@pytest.fixture
def shelf(tmp_path):
    """Folders of bundles and their versions: two that may be promoted, one that was rejected."""
    made = {"first": (1, "promote"), "second": (2, "promote"), "rejected": (3, "reject")}
    return {name: (tmp_path / name, bundle_at(tmp_path / name, *facts)) for name, facts in made.items()}


def states(root: str) -> dict[str, str]:
    return {each.version: each.state for each in Registry(root).list()}


def champion_of(root: str, folder: Path) -> Registry:
    """A registry whose champion is the bundle in `folder`."""
    registry = Registry(root)
    version = registry.add(folder).version
    registry.promote(version)
    registry.promote(version)
    return registry


# Steps


def test_registry_leads_a_bundle_from_candidate_to_champion_and_its_successor_retires_it(root, shelf):
    (one, first), (two, second) = shelf["first"], shelf["second"]
    registry = Registry(root)
    assert registry.list() == []
    assert (registry.add(one).version, registry.add(two).version) == (first, second)
    assert states(root) == {first: "candidate", second: "candidate"}
    assert [registry.promote(first).state for _ in range(2)] == ["challenger", "champion"]
    assert registry.promote(second).state == "challenger"
    assert states(root) == {first: "champion", second: "challenger"}
    assert registry.promote(second).state == "champion"
    assert list(states(root).items()) == [(second, "champion"), (first, "retired")]
    retired = Registry(root).show(first).listed
    assert (retired.replaced_by, retired.reason) == (second, f"replaced by {second}")
    told = [change.text for change in Registry(root).show(first).history]
    steps = ["listed as candidate", "promoted to challenger", "promoted to champion", f"retired: replaced by {second}"]
    assert told == steps
    assert Registry(root).show(second).history[-1].text == f"promoted to champion in place of {first}"
    assert [entry.kind for entry in Chain(root, "registry").entries()] == ["added"] * 2 + ["promoted"] * 4


def test_registry_takes_a_replaced_champion_back_in_one_step(tmp_path, shelf):
    (one, first), (two, second) = shelf["first"], shelf["second"]
    registry = champion_of(str(tmp_path / "r"), one)
    for _ in range(2):
        registry.promote(registry.add(two).version)
    back = registry.promote(first)
    assert (back.state, back.replaced_by, back.reason) == ("champion", None, None)
    assert registry.show(second).listed.replaced_by == first
    registry.retire(second, "it lost twice as much as it was judged to")
    with pytest.raises(BundleError, match=f"{second}: is retired .it lost twice.*cannot be promoted; register another"):
        registry.promote(second)


def test_registry_add_is_idempotent_and_does_not_change_a_state(root, shelf):
    folder, version = shelf["first"]
    registry = champion_of(root, folder)
    head = registry._chain.head()
    assert registry.add(folder).state == "champion"
    registry.retire(version, "enough")
    assert Registry(root).add(folder).state == "retired"
    assert registry._chain.head().number == head.number + 1
    assert sorted(names(root)) == sorted(
        [f"bundles/{version}/{name}" for name in bundle_files(folder)]
        + [f"registry/{number:08}.json" for number in range(1, 5)]
    )


def test_registry_retires_from_any_state_and_keeps_the_reason(tmp_path, shelf):
    root = str(tmp_path / "r")
    for steps in range(3):
        registry, version = Registry(f"{root}{steps}"), Registry(f"{root}{steps}").add(shelf["first"][0]).version
        for _ in range(steps):
            registry.promote(version)
        retired = registry.retire(version, " bars were corrected ")
        assert (retired.state, retired.reason) == ("retired", "bars were corrected")
        assert registry.show(version).history[-1].text == "retired: bars were corrected"
        with pytest.raises(BundleError, match=r"is retired already \(bars were corrected\)"):
            registry.retire(version, "again")
        with pytest.raises(BundleError, match="there is no champion"):
            registry.fetch("champion", tmp_path / "out")


@pytest.mark.parametrize("blank", ["", "  "])
def test_registry_refuses_to_retire_without_a_reason(tmp_path, shelf, blank):
    registry = champion_of(str(tmp_path / "r"), shelf["first"][0])
    with pytest.raises(BundleError, match="say why it is to be retired"):
        registry.retire("champion", blank)


def test_registry_refuses_to_promote_beyond_champion(tmp_path, shelf):
    with pytest.raises(BundleError, match="is champion already; there is no higher state"):
        champion_of(str(tmp_path / "r"), shelf["first"][0]).promote(shelf["first"][1])


def test_registry_finds_a_bundle_by_how_its_version_or_hash_begins(tmp_path, shelf):
    registry = Registry(str(tmp_path / "r"))
    versions = [registry.add(folder).version for folder, _ in shelf.values()]
    for version in versions:
        assert registry.show(version[:12]).listed.version == version
        assert registry.show(version.removeprefix("toy-")).listed.version == version
    with pytest.raises(BundleError, match=r"'toy-' may be any of toy-.*, toy-.*, toy-.*; write more of it"):
        registry.show("toy-")
    for unknown in ("tox", ""):
        with pytest.raises(BundleError, match=f"no bundle is called '{unknown}' .there is: toy-.*; register it"):
            registry.show(unknown)


def test_registry_refuses_a_bundle_that_does_not_verify_and_stores_nothing(tmp_path, shelf):
    folder, _ = shelf["first"]
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"weights.safetensors altered"):
        Registry(str(tmp_path / "r")).add(folder)
    assert names(str(tmp_path / "r")) == []


def test_registry_refuses_a_policy_whose_name_is_no_plain_name(tmp_path):
    bundle_at(tmp_path / "odd", name="../toy")
    with pytest.raises(BundleError, match="name the policy with letters"):
        Registry(str(tmp_path / "r")).add(tmp_path / "odd")


def test_registry_shows_what_a_bundle_is(tmp_path, shelf):
    folder, version = shelf["first"]
    shown = champion_of(str(tmp_path / "r"), folder).show("champion")
    assert shown.manifest == read_bundle(folder).manifest
    assert (shown.listed.version, shown.listed.config_hash, shown.listed.code) == (version, "c0ffee", "swing-rl 0.1.0")
    assert (shown.listed.decision, shown.listed.override) == ("promote", None)
    assert shown.listed.changed_at == shown.history[-1].at >= shown.listed.added_at


# Fetching


def test_registry_fetches_the_champion_byte_for_byte(root, shelf, tmp_path):
    folder, version = shelf["first"]
    champion_of(root, folder)
    for wanted in ("champion", version):
        out = tmp_path / "out" / wanted
        assert Registry(root).fetch(wanted, out).version == version
        assert bundle_files(out) == bundle_files(folder)
        assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_registry_fetch_replaces_a_bundle_and_nothing_else(tmp_path, shelf):
    registry = champion_of(str(tmp_path / "r"), shelf["first"][0])
    out = shelf["second"][0]
    registry.fetch("champion", out)
    assert read_bundle(out).version == shelf["first"][1]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(BundleError, match="exists and is no bundle"):
        registry.fetch("champion", tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_registry_refuses_an_altered_or_missing_blob_until_the_bundle_is_registered_again(root, shelf, tmp_path):
    folder, version = shelf["first"]
    registry = champion_of(root, folder)
    for name, body in bundle_files(folder).items():
        blob = f"bundles/{version}/{name}"
        for spoilt, fault in ((body[:-1] + bytes([body[-1] ^ 1]), "was altered"), (None, "is missing")):
            put(root, blob, spoilt)
            for use in (lambda: registry.fetch(version, tmp_path / "out"), lambda: registry.show(version)):
                with pytest.raises(BundleError, match=f"{blob} {fault}; register the same bundle again"):
                    use()
            assert not (tmp_path / "out").exists()
        registry.add(folder)
        assert get(root, blob) == body
    assert registry.fetch(version, tmp_path / "out").version == version


def test_registry_promotes_no_damaged_bundle(tmp_path, shelf):
    registry = Registry(str(tmp_path / "r"))
    version = registry.add(shelf["first"][0]).version
    put(str(tmp_path / "r"), f"bundles/{version}/evidence/validation.json", b"[]")
    with pytest.raises(BundleError, match=r"validation.json was altered"):
        registry.promote(version)
    assert states(str(tmp_path / "r")) == {version: "candidate"}


def test_registry_whose_history_was_altered_is_refused(root, shelf):
    registry = champion_of(root, shelf["first"][0])
    event = "registry/00000002.json"
    put(root, event, get(root, event).replace(b'"challenger"', b'"champion"'))
    for use in (registry._chain.verify, Registry(root).list, lambda: Registry(root).fetch("champion", Path("out"))):
        with pytest.raises(RunError, match=r"entry 3 .* does not follow entry 2"):
            use()


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("sold", {}, "entry 2 is a 'sold' of another version"),
        ("retired", {"version": "toy-1"}, "entry 2 is a 'retired' of another version"),
        ("retired", {"version": "toy-1", "reason": "why"}, "entry 2 is about 'toy-1', which was never listed"),
    ],
)
def test_registry_with_an_event_that_makes_no_sense_is_refused(tmp_path, shelf, kind, body, words):
    root = str(tmp_path / "r")
    Registry(root).add(shelf["first"][0])
    Chain(root, "registry").append(kind, body)
    with pytest.raises(RunError, match=words):
        Registry(root).list()


# Overrides


def test_registry_overrides_a_rejection_in_a_copy_that_says_why(root, shelf, tmp_path):
    folder, version = shelf["rejected"]
    registry = Registry(root)
    registry.add(folder)
    promoted = registry.promote(version, override=f" {WHY} ")
    assert promoted.version != version
    assert (promoted.state, promoted.override, promoted.overrides) == ("challenger", WHY, version)
    assert states(root) == {promoted.version: "challenger", version: "retired"}
    assert registry.show(version).listed.reason == f"used with an override as {promoted.version}"
    assert registry.promote(promoted.version).state == "champion", "it carries its reason on"
    bundle = registry.fetch("champion", tmp_path / "out")
    assert bundle.version == promoted.version
    assert (bundle.manifest.verdict.decision, bundle.manifest.verdict.override) == ("reject", WHY)
    before, after = bundle_files(folder), bundle_files(tmp_path / "out")
    told = json.loads(after.pop("evidence/override.json"))
    assert told["override"] == WHY
    assert (told["overridden"]["version"], told["overridden"]["decision"]) == (version, "reject")
    assert {name for name in after if after[name] != before[name]} == {"manifest.json"}
    assert after.keys() == before.keys()
    history = [change.text for change in registry.show(promoted.version).history]
    assert history == [f"promoted to challenger as {version} with the override: {WHY}", "promoted to champion"]
    assert registry.fetch(version, tmp_path / "old").manifest.verdict.override is None


def test_registry_refuses_a_rejected_bundle_without_an_override(tmp_path, shelf):
    registry = Registry(str(tmp_path / "r"))
    version = registry.add(shelf["rejected"][0]).version
    for blank in (None, "", "  "):
        with pytest.raises(BundleError, match="was rejected by its judge; say in --override why"):
            registry.promote(version, blank)
    assert states(str(tmp_path / "r")) == {version: "candidate"}


def test_registry_refuses_an_override_where_it_makes_no_sense(tmp_path, shelf):
    registry = Registry(str(tmp_path / "r"))
    version = registry.add(shelf["first"][0]).version
    with pytest.raises(BundleError, match="its judge says promote, there is nothing to override"):
        registry.promote(version, WHY)
    copy = registry.promote(registry.add(shelf["rejected"][0]).version, WHY)
    with pytest.raises(BundleError, match=r"carries an override already \(rehearsal.*give no other"):
        registry.promote(copy.version, "because")
    with pytest.raises(BundleError, match=r"is retired \(used with an override as"):
        registry.promote(shelf["rejected"][1], WHY)
    assert registry.promote(copy.version, WHY).state == "champion"


def test_registry_same_override_gives_the_same_bundle(tmp_path, shelf):
    versions = set()
    for name in ("left", "right"):
        registry = Registry(str(tmp_path / name))
        versions.add(registry.promote(registry.add(shelf["rejected"][0]).version, WHY).version)
    assert len(versions) == 1


def test_registry_lists_an_overridden_bundle_of_another_registry_with_its_reason(tmp_path, shelf):
    theirs, ours = Registry(str(tmp_path / "theirs")), Registry(str(tmp_path / "ours"))
    copy = theirs.promote(theirs.add(shelf["rejected"][0]).version, WHY).version
    theirs.fetch(copy, tmp_path / "copy")
    assert ours.add(tmp_path / "copy").override == WHY
    assert ours.promote(copy).state == "challenger"
    ours.add(shelf["rejected"][0])
    with pytest.raises(BundleError, match=f"with this override it is listed as {copy}; promote that"):
        ours.promote(shelf["rejected"][1], WHY)


def test_bundle_written_before_there_were_overrides_is_still_read(tmp_path):
    bundle_at(tmp_path / "bundle", decision="reject")
    path = tmp_path / "bundle" / "manifest.json"
    from envs.bundle import _manifest_bytes

    head = json.loads(path.read_bytes())
    del head["sha256"], head["manifest"]["verdict"]["override"]
    path.write_bytes(_manifest_bytes(head))
    assert read_bundle(tmp_path / "bundle").manifest.verdict.override is None


# Races and deaths


def interrupted(registry: Registry, monkeypatch, deed) -> None:
    """Lets `deed` happen just before the next event of `registry` is put."""
    blobs, left = registry._chain.blobs, [deed]
    put_new = blobs.put_new

    def after_the_deed(name, body):
        while left:
            left.pop()()
        return put_new(name, body)

    monkeypatch.setattr(blobs, "put_new", after_the_deed)


def test_registry_promotion_decided_before_another_became_champion_is_refused(root, shelf, monkeypatch):
    (one, first), (two, second) = shelf["first"], shelf["second"]
    ours, theirs = Registry(root), Registry(root)
    for version in (ours.add(one).version, ours.add(two).version):
        ours.promote(version)
    interrupted(ours, monkeypatch, lambda: theirs.promote(second))
    with pytest.raises(BundleError, match=f"{first}: not promoted, for {second} became champion meanwhile instead of"):
        ours.promote(first)
    assert states(root) == {second: "champion", first: "challenger"}
    assert ours.promote(first).state == "champion", "decided anew, and knowing"
    assert ours.show(first).history[-1].text == f"promoted to champion in place of {second}"


def test_registry_change_of_a_bundle_that_another_changed_meanwhile_is_refused(tmp_path, shelf, monkeypatch):
    folder, version = shelf["first"]
    changes = (lambda r: r.promote(version), lambda r: r.retire(version, "mine"))
    for number, (ours_do, theirs_do) in enumerate((a, b) for a in changes for b in changes):
        ours, theirs = (Registry(str(tmp_path / f"r{number}")) for _ in range(2))
        ours.add(folder)
        with monkeypatch.context() as patch:
            interrupted(ours, patch, lambda do=theirs_do, who=theirs: do(who))
            with pytest.raises(BundleError, match=r"was changed meanwhile from candidate to .*look again"):
                ours_do(ours)
        assert len(ours.show(version).history) == 2


def test_registry_promotion_goes_on_after_an_event_that_does_not_concern_it(root, shelf, monkeypatch):
    (one, first), (two, second) = shelf["first"], shelf["second"]
    ours, theirs = Registry(root), Registry(root)
    ours.add(one)
    interrupted(ours, monkeypatch, lambda: theirs.add(two))
    assert ours.promote(first).state == "challenger"
    assert states(root) == {first: "challenger", second: "candidate"}


def test_registry_two_adding_the_same_bundle_at_once_list_it_once(tmp_path, shelf, monkeypatch):
    ours, theirs = (Registry(str(tmp_path / "r")) for _ in range(2))
    interrupted(ours, monkeypatch, lambda: theirs.add(shelf["first"][0]))
    assert ours.add(shelf["first"][0]).state == "candidate"
    assert ours._chain.head().number == 1


def test_registry_two_promoters_at_once_each_know_whom_they_replace(root, shelf):
    rounds = 6
    versions = [champion_of(root, shelf[name][0]).list()[0].version for name in ("first", "second")]
    told = victims.race(*[("promote_many", root, version, str(rounds)) for version in versions])
    champion, done = versions[1], Counter()
    for entry in Chain(root, "registry").entries()[6:]:
        assert (entry.kind, entry.body["replaced"]) == ("promoted", champion)
        champion = entry.body["version"]
        done[champion] += 1
    assert [answers.count("done") for answers in told] == [done[version] for version in versions]
    others = {answer for answers in told for answer in answers} - {"done"}
    assert all("is champion already" in answer or "meanwhile" in answer for answer in others), others
    assert sorted(states(root).values()) == ["champion", "retired"]


def test_registry_promoter_killed_at_every_operation_leaves_the_old_state(root, shelf):
    version = Registry(root).add(shelf["rejected"][0]).version
    *found, last = victims.run("kill_promote", root, version)
    assert len(found) >= 5
    assert all(after == {version: "candidate"} for after in found)
    (copy,) = last.keys() - {version}
    assert last == {version: "retired", copy: "challenger"}
    assert Registry(root).show(copy).listed.override == "rehearsal"


# The commands


def test_commands_tell_the_whole_life_of_a_bundle(swing_rl, shelf, tmp_path):
    root = str(tmp_path / "registry")
    (one, first), (bad, rejected) = shelf["first"], shelf["rejected"]
    at = ("--registry", root)
    assert "lists nothing yet" in swing_rl("list", *at)[1]
    status, told, _ = swing_rl("register", str(one), *at, "--json")
    assert (status, json.loads(told)) == (0, {"version": first, "state": "candidate", "verdict": "promote"})
    assert f"version: {rejected}" in swing_rl("register", str(bad), *at)[1]
    assert "state: challenger" in swing_rl("promote", first, *at)[1]
    assert json.loads(swing_rl("promote", first[:10], *at, "--json")[1])["state"] == "champion"
    status, told, wrong = swing_rl("promote", rejected, *at)
    assert (status, told, wrong.count("\n")) == (2, "", 1)
    assert "was rejected by its judge" in wrong
    copy = json.loads(swing_rl("promote", rejected, "--override", "[try] it", *at, "--json")[1])
    assert (copy["state"], copy["override"]) == ("challenger", "[try] it")
    told = swing_rl("list", *at)[1]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if line.startswith("│")]
    assert [row[:2] + row[3:4] for row in rows] == [
        [first, "champion", "promote"],
        [copy["version"], "challenger", "reject"],
        [rejected, "retired", "reject"],
    ]
    assert rows[1][4] == "override: [try] it"
    listed = json.loads(swing_rl("list", *at, "--json")[1])["bundles"]
    assert [each["state"] for each in listed] == ["champion", "challenger", "retired"]
    told = " ".join(swing_rl("show", copy["version"], *at)[1].split())
    for words in (f"copy of: {rejected}", "override: [try] it", "symbols: AAA, BBB", "It beats buy-and-hold by 0.1."):
        assert words in told
    shown = json.loads(swing_rl("show", "champion", *at, "--json")[1])
    assert [change["text"] for change in shown["history"]][-1] == "promoted to champion"
    assert shown["manifest"]["config_hash"] == "c0ffee"
    out = tmp_path / "fetched"
    assert f"policy_version: {first}" in swing_rl("fetch", "champion", "--out", str(out), *at)[1]
    assert read_bundle(out).version == first
    assert json.loads(swing_rl("retire", "champion", "--reason", "done", *at, "--json")[1])["state"] == "retired"
    assert swing_rl("fetch", "champion", "--out", str(out), *at)[0] == 2


@pytest.mark.parametrize("name", ["register", "list", "show", "promote", "retire", "fetch"])
def test_command_help_teaches_with_an_example(swing_rl, name):
    status, told, _ = swing_rl(name, "--help")
    text = " ".join(told.split())
    assert status == 0
    assert f"Example: swing-rl {name}" in text
    assert "--json" in text
    assert "runs/registry" in text
