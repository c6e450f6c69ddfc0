"""Entries of the leaderboard: written, read, and refused where something does not fit."""

import dataclasses

import numpy as np
import pytest
import torch

import rnr_gym as rnr
from rnr_gym import data
from rnr_gym.experiments import entries, runs
from rnr_gym.experiments.entries import Entry, check_origin, check_paths, read_entry, write_entry
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS, evaluate
from rnr_gym.routing.rollout import decision_macs
from tests.fixtures.digits import ENV, load_other, use_few_digits
from tests.fixtures.entries import paper_entry, rewritten
from tests.fixtures.records import EXPENSIVE, paper_testbed
from tests.fixtures.routers import confidence_router

EARLY = (0, 3)
"""Image 3 at the first trade-off, where the paper's entry takes the path 2, 2."""


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch):
    use_few_digits(monkeypatch)


@pytest.fixture
def entry_file(tmp_path):
    path = tmp_path / "entry.safetensors"
    write_entry(path, paper_entry())
    return path


def same(entry, other):
    """Whether two entries are equal, field by field."""
    pairs = [
        (getattr(entry, field.name), getattr(other, field.name))
        for field in dataclasses.fields(Entry)
    ]
    return all(np.array_equal(one, two) for one, two in pairs)


# Files


def test_written_entry_is_read(entry_file):
    assert same(read_entry(entry_file), paper_entry())


def test_entry_is_written_the_same_again(entry_file, tmp_path):
    write_entry(tmp_path / "again.safetensors", paper_entry())
    assert (tmp_path / "again.safetensors").read_bytes() == entry_file.read_bytes()


def test_existing_file_is_not_overwritten(entry_file):
    before = entry_file.read_bytes()
    with pytest.raises(FileExistsError, match="`out` must be a new file, got"):
        write_entry(entry_file, paper_entry(router="another"))
    assert entry_file.read_bytes() == before


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-30])


def text(path):
    path.write_text("paths " * 100)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, text, flip_a_bit], ids=lambda each: each.__name__)
def test_damaged_file_is_refused(entry_file, damage):
    damage(entry_file)
    with pytest.raises(ValueError, match=r"`entry` must be .*entry\.safetensors.*cut off or"):
        read_entry(entry_file)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`entry` must be a file, got"):
        read_entry(tmp_path / "none.safetensors")


def test_large_file_is_refused_unread(entry_file, monkeypatch):
    monkeypatch.setattr(entries, "LARGEST", 500)
    monkeypatch.setattr(entries.storage, "load_tensors", lambda _: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="`entry` must be a file of at most 500 bytes, got"):
        read_entry(entry_file)


def set_field(name, value):
    """A change of the metadata."""

    def change(tensors, metadata):
        metadata[name] = value

    return change


def drop_field(name):
    def change(tensors, metadata):
        del metadata[name]

    return change


def set_tensor(name, value):
    def change(tensors, metadata):
        tensors[name] = value

    return change


ALTERED = {
    "another kind": (set_field("kind", "router"), "must be a file that `rnr-gym enter` wrote"),
    "another tensor": (set_tensor("more", torch.zeros(1)), "must be a file that `rnr-gym enter`"),
    "no router": (drop_field("router"), "which lacks router"),
    "no split": (drop_field("split"), "which lacks split"),
    "another split": (set_field("split", "route"), "`split` must be one of test, got 'route'"),
    "unknown id": (set_field("env", "RNR-Letters-v0"), "`env` must be one of RNR-Digits-v0"),
    "id of another type": (set_field("env", 3), "`env` must be one of RNR-Digits-v0"),
    "no digest": (set_field("weights_digest", None), "`weights_digest` must be a digest, got None"),
    "wide paths": (
        set_tensor("paths", torch.zeros(16, 8, 2, dtype=torch.int64)),
        r"`paths` must be torch.int8, got torch.int64",
    ),
    "paths of one trade-off": (
        set_tensor("paths", torch.zeros(8, 2, dtype=torch.int8)),
        r"`paths` must be whole numbers of shape \(16, any, any\), got int8 \(8, 2\)",
    ),
}
"""Changes of a file, with what the error says."""


@pytest.mark.parametrize(("change", "message"), ALTERED.values(), ids=ALTERED)
def test_altered_file_is_refused(entry_file, change, message):
    rewritten(entry_file, change)
    with pytest.raises(ValueError, match=message) as caught:
        read_entry(entry_file)
    assert "entry.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


# What is in no entry


def tradeoffs_with(change):
    """The trade-offs of an entry after a change."""
    tradeoffs = np.array(EVAL_TRADEOFFS)
    change(tradeoffs)
    return tradeoffs


def swap(tradeoffs):
    tradeoffs[[3, 4]] = tradeoffs[[4, 3]]


def move(tradeoffs):
    tradeoffs[3] *= 1.001


def raise_last(tradeoffs):
    tradeoffs[-1] = 4.5


def lower_first(tradeoffs):
    tradeoffs[0] = -0.003


def undefined(tradeoffs):
    tradeoffs[2] = np.nan


FIELDS = {
    "empty router": ({"router": ""}, "`router` must be 1 to 60 printable characters"),
    "long author": ({"author": "A" * 61}, "`author` must be 1 to 60 printable characters"),
    "author with a line break": ({"author": "A\nB"}, "`author` must be 1 to 60 printable"),
    "author with a table": ({"author": "A | B"}, "`author` must be 1 to 60 printable"),
    "author of another type": ({"author": 7}, "`author` must be 1 to 60 printable .* got 7"),
    "code that is no address": ({"code": "mine"}, "`code` must be an address .* got 'mine'"),
    "code with markup": ({"code": "https://x.org/<script>"}, "`code` must be 1 to 200 printable"),
    "weights of a file": ({"weights": "b.safetensors"}, "`weights` must be one of pretrained, fi"),
    "static with decisions": ({"static": True}, r"`decision_macs` must be .* 0\.\.0, got 1"),
    "negative decision": ({"decision_macs": -1}, "`decision_macs` must be a whole number in 0"),
    "half a MAC": ({"decision_macs": 0.5}, "`decision_macs` must be a whole number in 0"),
    "unordered trade-offs": ({"tradeoffs": tradeoffs_with(swap)}, "`tradeoffs` must ascend, got"),
    "the same trade-off twice": (
        {
            "tradeoffs": np.insert(EVAL_TRADEOFFS, 1, EVAL_TRADEOFFS[0] * (1 + 1e-12)),
            "paths": np.zeros((17, 8, 2), np.int8),
        },
        "`tradeoffs` must ascend, got",
    ),
    "other trade-offs": ({"tradeoffs": tradeoffs_with(move)}, "none at 0.0110129"),
    "high trade-off": (
        {"tradeoffs": tradeoffs_with(raise_last)},
        r"`tradeoffs` must be finite numbers in 0\.\.4, got 4\.5",
    ),
    "negative trade-off": (
        {"tradeoffs": tradeoffs_with(lower_first)},
        r"`tradeoffs` must be finite numbers in 0\.\.4, got -0\.003",
    ),
    "undefined trade-off": ({"tradeoffs": tradeoffs_with(undefined)}, "`tradeoffs` must be finite"),
    "many trade-offs": (
        {"tradeoffs": np.linspace(0.0, 4.0, 129)},
        "`tradeoffs` must be at most 128 numbers, got 129",
    ),
    "few paths": ({"paths": np.zeros((15, 8, 2), np.int8)}, r"`paths` must be .* \(16, any, any\)"),
    "negative sub-path": (
        {"paths": np.full((16, 8, 2), -2, np.int8)},
        r"`paths` must lie in -1\.\.127, got -2",
    ),
}
"""Fields that no entry has, with what the error says."""


@pytest.mark.parametrize(("fields", "message"), FIELDS.values(), ids=FIELDS)
def test_impossible_entry_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        paper_entry(**fields)


def test_tradeoffs_of_another_machine_are_accepted():
    elsewhere = np.nextafter(np.array(EVAL_TRADEOFFS), 4.0)
    assert tuple(paper_entry(tradeoffs=elsewhere).tradeoffs) == EVAL_TRADEOFFS


# What does not fit the environment


def paths_with(value):
    """The paths of the paper's entry with another path of one image."""
    paths = paper_entry().paths.copy()
    paths[EARLY] = value
    return paths


MISFITS = {
    "sub-path 3 of 0..2": ([2, 3], r"one of the sub-paths 0, 1, 2 at layer 1, got 3 for image 3"),
    "early end": ([2, -1], r"one of the sub-paths 0, 1, 2 at layer 1, got -1 for image 3"),
    "no path": ([-1, -1], r"one of the sub-paths 0, 1, 2 at layer 0, got -1 for image 3"),
    "sub-path after an exit": ([0, 2], r"-1 after an exit, got 2 for image 3 at trade-off 0\.003"),
    "exit after an exit": ([0, 0], r"-1 after an exit, got 0 for image 3 at trade-off 0\.003"),
}
"""Paths of one image, with what the error says."""


@pytest.mark.parametrize(("path", "message"), MISFITS.values(), ids=MISFITS)
def test_path_that_does_not_fit_is_refused(path, message):
    with pytest.raises(ValueError, match=f"`paths` must .*{message}"):
        check_paths(paper_entry(paths=paths_with(path)), paper_testbed().source)


def test_masked_sub_path_is_refused():
    table = paper_testbed().table
    valid = table.spec.valid.copy()
    valid[1, 2] = False
    masked = dataclasses.replace(table, spec=dataclasses.replace(table.spec, valid=valid))
    with pytest.raises(ValueError, match="one of the sub-paths 0, 1 at layer 1, got 2 for image 0"):
        check_paths(paper_entry(), masked)


def test_wrong_number_of_images_is_refused():
    with pytest.raises(ValueError, match=r"one path for each of the 8 images .* got 7"):
        check_paths(paper_entry(paths=paper_entry().paths[:, :7]), paper_testbed().source)


def test_wrong_length_of_paths_is_refused():
    longer = np.concatenate([paper_entry().paths] * 2, axis=2)
    with pytest.raises(ValueError, match="`paths` must have 2 layers, as RNR-Digits-v0, got 4"):
        check_paths(paper_entry(paths=longer), paper_testbed().source)


def test_static_entry_with_two_paths_is_refused():
    entry = paper_entry(static=True, decision_macs=0, paths=paths_with([2, 1]))
    message = r"`static` must be False .* got True, with 2 paths at trade-off 0\.003"
    with pytest.raises(ValueError, match=message):
        check_paths(entry, paper_testbed().source)


@pytest.fixture(scope="module")
def source():
    """The few digits."""
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        return entries.open_test(ENV, "pretrained")


def digits_entry(source, **fields):
    """An entry of the full path on the few digits."""
    spec = source.spec
    shape = (16, len(source.labels), spec.num_layers)
    values = {
        "paths": np.full(shape, spec.full_path, np.int8),
        **entries.origin(ENV, "pretrained", source),
    }
    return paper_entry(**{**values, **fields})


def test_entry_of_these_weights_and_images_is_accepted(source):
    check_origin(digits_entry(source), source)


def test_other_weights_are_refused(source):
    finetuned = entries.origin(ENV, "finetuned", source)["weights_digest"]
    entry = digits_entry(source, weights_digest=finetuned)
    message = f"`weights_digest` must be .* pretrained weights of {ENV}, got '{finetuned}'"
    with pytest.raises(ValueError, match=message):
        check_origin(entry, source)


def test_other_images_are_refused(source, monkeypatch):
    monkeypatch.setattr(data, "load", load_other)
    elsewhere = entries.open_test(ENV, "pretrained")
    entry = digits_entry(source)
    message = f"`source_digest` must be .*, got '{entry.source_digest}': .* of other images"
    with pytest.raises(ValueError, match=message):
        check_origin(entry, elsewhere)


# Making entries


def test_router_is_entered_with_its_paths(source, tmp_path):
    out = tmp_path / "entry.safetensors"
    router = confidence_router(source.spec)
    rnr.enter_router(out, ENV, router, name="mine", author="A. Name")
    entry = read_entry(out)
    assert (entry.router, entry.author, entry.code) == ("mine", "A. Name", "-")
    assert not entry.static
    assert tuple(entry.tradeoffs) == EVAL_TRADEOFFS
    for tradeoff, paths in zip(EVAL_TRADEOFFS, entry.paths, strict=True):
        np.testing.assert_array_equal(paths, evaluate(source, router, tradeoff).path)
    check_origin(entry, source)


def run_of(agent, folder, **fit_kwargs):
    """The folder of a fitted router."""
    fit_config = rnr.FitConfig(ENV, steps=512, progress=False, **fit_kwargs)
    runs.fit(agent, fit_config, folder)
    return folder


def test_run_is_entered_with_counted_decisions(source, tmp_path):
    run_dir = run_of("ppo", tmp_path / "run")
    entry = entries.enter_run(run_dir, tmp_path / "entry.safetensors", "A. Name")
    expected = decision_macs(runs.load(run_dir).router, source.spec)
    assert entry.decision_macs == expected > 0
    assert (entry.router, entry.env, entry.weights) == ("ppo", ENV, "pretrained")
    assert same(entry, read_entry(tmp_path / "entry.safetensors"))


def test_static_run_has_a_tradeoff_for_each_of_its_paths(tmp_path):
    run_dir = run_of("static", tmp_path / "run")
    entry = entries.enter_run(run_dir, tmp_path / "entry.safetensors", "A. Name")
    own = runs.load(run_dir).router.tradeoffs
    assert {*entry.tradeoffs} == {*EVAL_TRADEOFFS, *own}
    assert entry.static
    assert entry.decision_macs == 0


def test_run_on_finetuned_weights_says_so(tmp_path):
    run_dir = run_of("full", tmp_path / "run", kwargs={"weights": "finetuned"})
    entry = entries.enter_run(run_dir, tmp_path / "entry.safetensors", "A. Name")
    assert entry.weights == "finetuned"
    elsewhere = entries.open_test(ENV, "finetuned")
    check_origin(entry, elsewhere)


def test_run_without_exits_is_refused(tmp_path):
    run_dir = run_of("full", tmp_path / "run", kwargs={"exits": False})
    with pytest.raises(ValueError, match="`run` must be fitted to an id as it is registered"):
        entries.enter_run(run_dir, tmp_path / "entry.safetensors", "A. Name")
    assert not (tmp_path / "entry.safetensors").exists()


def enter_expensive(out, **arguments):
    """Enter paths of the paper's length, which are too short for the digits."""
    paths = np.array([EXPENSIVE] * 16, np.int8)
    kwargs = {"name": "mine", "author": "A. Name", "decision_macs": 0}
    rnr.enter_paths(out, ENV, paths, **{**kwargs, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`paths` must have one path for each"),
        ({"author": ""}, "`author` must be 1 to 60"),
        ({"weights": "other"}, "`weights` must be one of pretrained, finetuned, got 'other'"),
        ({"tradeoffs": "low"}, "`tradeoffs` must be numbers"),
        ({"static": 1}, "`static` must be True or False, got 1"),
    ],
    ids=["paths", "author", "weights", "tradeoffs", "static"],
)
def test_paths_that_do_not_fit_are_not_written(tmp_path, arguments, message):
    out = tmp_path / "entry.safetensors"
    with pytest.raises(ValueError, match=message):
        enter_expensive(out, **arguments)
    assert not out.exists()


@pytest.mark.parametrize("env", ["RNR-Letters-v0", None])
def test_unknown_id_is_not_entered(tmp_path, env):
    with pytest.raises(ValueError, match="`env` must be one of RNR-Digits-v0"):
        rnr.enter_router(tmp_path / "out", env, None, name="mine", author="A. Name")
