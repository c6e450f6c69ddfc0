"""The proof that a report's figures hold: a folder with one of them changed is rejected."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from rnr_gym import storage
from rnr_gym.agents import FitConfig
from rnr_gym.agents.static import fit_cheapest
from rnr_gym.classifier import ROUTER_FILE
from rnr_gym.experiments import report, results
from rnr_gym.experiments.comparison import evaluate_routers, router_dir
from rnr_gym.experiments.evaluation import evaluate, evaluate_paths
from rnr_gym.experiments.formatting import percent
from rnr_gym.experiments.results import ORACLE
from rnr_gym.experiments.validation import validate
from tests.fixtures.comparisons import COMPARED, SEEDS, compare_quickly, read_results, write_results
from tests.fixtures.digits import ENV
from tests.fixtures.files import snapshot

REJECTED = r"does not hold|must have|answers differ when run again|paths differ when chosen again"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    compare_quickly(monkeypatch)


@pytest.fixture
def copy_dir(report_dir, tmp_path):
    """A copy of the report that may be changed."""
    return shutil.copytree(report_dir, tmp_path / "copy")


def test_validate_accepts_untouched_report(report_dir):
    before = snapshot(report_dir)
    assert validate(report_dir) == len(read_results(report_dir)["rows"])
    assert snapshot(report_dir) == before


def test_validate_ignores_measured_seconds(copy_dir):
    content = read_results(copy_dir)
    content["rows"][3]["seconds"] += 7.0
    (copy_dir / "results.json").write_text(json.dumps(content))
    assert validate(copy_dir) == len(content["rows"])


def row_of(content, router):
    """A row from the middle of a router's rows."""
    rows = [row for row in content["rows"] if row["router"] == router]
    return rows[5]


def first_row_idx(content, router):
    """Where a router's rows start."""
    return [row["router"] for row in content["rows"]].index(router)


def change_accuracy(content):
    row_of(content, "ppo")["accuracy"] += 0.01


def change_compute(content):
    row_of(content, "ppo")["compute"] -= 0.005


def change_static_compute(content):
    row_of(content, "static")["compute"] -= 0.005


def change_regret(content):
    row_of(content, "confidence")["regret"] -= 0.002


def change_loss(content):
    row_of(content, "confidence")["loss"] -= 0.01


def change_router_macs(content):
    row = row_of(content, "ppo")
    row["router_macs"] = 0
    row["decision_macs"] = 0


def change_row_images(content):
    row_of(content, "ppo")["images"] += 1


def drop_row(content):
    content["rows"].remove(row_of(content, "confidence"))


def drop_router(content):
    content["routers"].pop(0)


def change_router_accuracy(content):
    content["routers"][1]["accuracy_at"][-1][0] += 0.01


def change_router_spread(content):
    content["routers"][2]["accuracy_at"][-1][1] = 0.001


def change_difference_interval(content):
    content["differences"][0]["low"] += 0.01


def change_difference_at_budget(content):
    content["differences"][0]["at"][-1][2] += 0.01


def change_saving(content):
    content["savings"][-1]["mean"] = 0.4


def change_saving_at_budget(content):
    content["savings"][-1]["at"][-1][0] = 0.4


def make_saving_infinite(content):
    entries = []
    for pair in content["savings"]:
        entries += [entry for entry in pair["at"] if entry[0] is not None]
    entries[0][:] = [None, None, None]


def drop_saving(content):
    content["savings"].pop()


def change_lost_at_budget(content):
    content["lost"][0]["at"][-1][0] -= 0.01


def change_lost_interval(content):
    content["lost"][-1]["high"] -= 0.01


def change_full_accuracy(content):
    content["full_accuracy"] += 0.01


def change_outcome_compute(content):
    content["by_outcome"][0]["wrong"] += 0.01


def change_outcome_interval(content):
    content["by_outcome"][-1]["low"] += 0.01


def change_severity_accuracy(content):
    content["by_severity"][0]["accuracy"][2] += 0.01


def change_used_path(content):
    content["paths"]["used"][0]["path"] = [2, 1, 2, 1]


def change_share_of_path(content):
    content["paths"]["used"][0]["share"] -= 0.01


def drop_used_path(content):
    content["paths"]["used"].pop()


def change_class_compute(content):
    content["by_class"][3]["compute"] += 0.01


def change_example_answer(content):
    content["examples"]["most_expensive"][0]["prediction"] = "another"


def exchange_examples(content):
    examples = content["examples"]
    examples["cheapest"].reverse()


def change_learning(content):
    content["learning"][0]["reward"][0] += 0.01


def drop_learning(content):
    content["learning"].pop()


def change_budgets(content):
    content["budgets"][0] = 0.04


def change_images(content):
    content["images"] = 10_000


def change_seeds(content):
    content["seeds"] = 20


def change_weights(content):
    content["provenance"]["weights and images"] = "0" * 12


CHANGES = [
    change_accuracy,
    change_compute,
    change_static_compute,
    change_regret,
    change_loss,
    change_router_macs,
    change_row_images,
    drop_row,
    drop_router,
    change_router_accuracy,
    change_router_spread,
    change_difference_interval,
    change_difference_at_budget,
    change_saving,
    change_saving_at_budget,
    make_saving_infinite,
    drop_saving,
    change_lost_at_budget,
    change_lost_interval,
    change_full_accuracy,
    change_outcome_compute,
    change_outcome_interval,
    change_severity_accuracy,
    change_used_path,
    change_share_of_path,
    drop_used_path,
    change_class_compute,
    change_example_answer,
    exchange_examples,
    change_learning,
    drop_learning,
    change_budgets,
    change_images,
    change_seeds,
    change_weights,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_validate_rejects_changed_results(copy_dir, change):
    content = read_results(copy_dir)
    change(content)
    # The page follows from the changed results, so only a replay can tell.
    write_results(copy_dir, content)
    with pytest.raises(ValueError, match=REJECTED):
        validate(copy_dir)


def opened(report_dir):
    """What a report is about, and its testbed."""
    content = read_results(report_dir)
    fit_config = FitConfig(env=content["env"], kwargs=content["arguments"])
    return fit_config, results.Testbed.open(fit_config)


def stored_records(report_dir):
    """The records that a report was written from."""
    _, testbed = opened(report_dir)
    return list(evaluate_routers(COMPARED, SEEDS, report_dir, testbed))


def rewrite(report_dir, records):
    """Write a report again, so that everything in it follows from the records."""
    fit_config, testbed = opened(report_dir)
    report.write(report_dir, fit_config, SEEDS, records, testbed)


def as_confidence_costs_nothing(report_dir, record):
    """A static network pays for neither the glance nor exits that do not answer."""
    if record.router != "confidence":
        return record
    _, testbed = opened(report_dir)
    evaluation = evaluate_paths(testbed.source, record.evaluation.path, static=True)
    return record._replace(static=True, decision_macs=0, evaluation=evaluation)


def test_validate_accepts_rewritten_report(copy_dir):
    """So that what is rejected below is rejected for what was changed."""
    rewrite(copy_dir, stored_records(copy_dir))
    validate(copy_dir)


def test_validate_rejects_false_static_charge(copy_dir):
    """Even if all other figures follow from it."""
    records = [as_confidence_costs_nothing(copy_dir, record) for record in stored_records(copy_dir)]
    rewrite(copy_dir, records)
    with pytest.raises(ValueError, match=r"`rows\[\d+\].static` does not hold"):
        validate(copy_dir)


def test_validate_rejects_oracle_as_learner(copy_dir):
    """The paths of the oracle, given out as a learner's."""
    records = stored_records(copy_dir)
    oracle = {record.tradeoff: record for record in records if record.router == ORACLE}
    forged = []
    for record in records:
        if record.router == "ppo":
            record = record._replace(evaluation=oracle[record.tradeoff].evaluation)
        forged.append(record)
    rewrite(copy_dir, forged)
    with pytest.raises(ValueError, match=r"row \d+ \(ppo, seed 0\): \d+ paths differ when chosen"):
        validate(copy_dir)


@pytest.mark.parametrize("name", ["static", "confidence"])
def test_validate_rejects_weaker_paths_of_rival(copy_dir, name):
    """A rival's rows with the cheapest path, which its file does not choose."""
    fit_config, testbed = opened(copy_dir)
    cheapest = fit_cheapest(fit_config)
    forged = []
    for record in stored_records(copy_dir):
        if record.router == name:
            evaluation = evaluate(testbed.source, cheapest, record.tradeoff)
            record = record._replace(evaluation=evaluation)
        forged.append(record)
    rewrite(copy_dir, forged)
    with pytest.raises(
        ValueError, match=rf"\({name}, seed 0\): \d+ paths differ when chosen again"
    ):
        validate(copy_dir)


def weaken_confidence(report_dir, share):
    """Lower the thresholds in the file of a rival, and write rows that follow from the file."""
    file = router_dir(report_dir, "confidence", 0) / ROUTER_FILE
    tensors, metadata = storage.load_tensors(file)
    thresholds = metadata["router"]["thresholds"]
    metadata["router"]["thresholds"] = [share * threshold for threshold in thresholds]
    storage.save_tensors(file, tensors, metadata)
    rewrite(report_dir, stored_records(report_dir))


def test_validate_rejects_weaker_rival(copy_dir):
    weaken_confidence(copy_dir, 0.1)
    with pytest.raises(ValueError, match=r"`routers/confidence-0` does not hold"):
        validate(copy_dir)


def test_validate_rejects_slightly_weaker_rival(copy_dir):
    """By a little more than a point of accuracy."""
    weaken_confidence(copy_dir, 0.8)
    with pytest.raises(ValueError, match=r"`routers/confidence-0` does not hold"):
        validate(copy_dir)


def test_validate_rejects_path_of_one_image(copy_dir):
    """Of so few images a single one is more than rounding explains."""
    _, testbed = opened(copy_dir)
    forged = stored_records(copy_dir)
    idx = [record.router for record in forged].index("ppo")
    paths = forged[idx].evaluation.path.copy()
    evaluation = evaluate_paths(
        testbed.source, other_first_path(paths), decision_macs=forged[idx].decision_macs
    )
    forged[idx] = forged[idx]._replace(evaluation=evaluation)
    rewrite(copy_dir, forged)
    with pytest.raises(ValueError, match=r"\(ppo, seed 0\): 1 paths differ when chosen again"):
        validate(copy_dir)


def test_validate_rejects_exchanged_routers(copy_dir):
    first = router_dir(copy_dir, "ppo", 0)
    first.rename(copy_dir / "aside")
    router_dir(copy_dir, "ppo", 1).rename(first)
    (copy_dir / "aside").rename(router_dir(copy_dir, "ppo", 1))
    with pytest.raises(ValueError, match=r"`routers/ppo-0.seed` does not hold"):
        validate(copy_dir)


def test_validate_rejects_other_agent(copy_dir):
    """A router that was fitted well, given out as another one."""
    shutil.rmtree(router_dir(copy_dir, "ppo", 1))
    shutil.copytree(router_dir(copy_dir, "confidence", 0), router_dir(copy_dir, "ppo", 1))
    with pytest.raises(ValueError, match=r"`routers/ppo-1.agent` does not hold"):
        validate(copy_dir)


def test_validate_rejects_zeroed_weights(copy_dir):
    file = router_dir(copy_dir, "ppo", 1) / ROUTER_FILE
    tensors, metadata = storage.load_tensors(file)
    zeroed = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    storage.save_tensors(file, zeroed, metadata)
    with pytest.raises(ValueError, match=r"\(ppo, seed 1\): \d+ paths differ when chosen again"):
        validate(copy_dir)


def test_validate_rejects_false_answers_on_few_images(copy_dir):
    """More than rounding explains, though all figures follow from them."""
    labels = FitConfig(ENV).source("test").labels
    forged = []
    for record in stored_records(copy_dir):
        if record.router == "ppo":
            prediction = record.evaluation.prediction.copy()
            wrong = np.flatnonzero(prediction != labels)[: max(1, len(labels) // 50)]
            prediction[wrong] = labels[wrong]
            evaluation = record.evaluation._replace(
                prediction=prediction, correct=prediction == labels
            )
            record = record._replace(evaluation=evaluation)
        forged.append(record)
    rewrite(copy_dir, forged)
    with pytest.raises(ValueError, match=r"\(ppo, seed 0\): \d+ answers differ when run again"):
        validate(copy_dir)


def test_validate_rejects_difference_above_rounding(copy_dir):
    """Half a thousandth is no rounding."""
    content = read_results(copy_dir)
    row_of(content, "ppo")["loss"] *= 1.0005
    row_of(content, "ppo")["accuracy"] += 0.0005
    write_results(copy_dir, content)
    with pytest.raises(ValueError, match=REJECTED):
        validate(copy_dir)


def test_validate_accepts_report_on_other_thread_count(report_dir):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        validate(report_dir)
    finally:
        torch.set_num_threads(before)


def change_arrays(report_dir, name, change):
    """Write `paths.npz` with one array changed."""
    with np.load(report_dir / "paths.npz") as stored:
        arrays = dict(stored)
    arrays[name] = change(arrays[name])
    np.savez_compressed(report_dir / "paths.npz", **arrays)


def other_first_path(paths):
    paths[0] = [0, -1, -1, -1] if paths[0, 0] == 3 else [3, 3, 3, 3]
    return paths


@pytest.mark.parametrize("router", ["static", "confidence", "ppo", ORACLE])
def test_validate_rejects_changed_path(copy_dir, router):
    """The path of a single image is enough."""
    row_idx = first_row_idx(read_results(copy_dir), router) + 5
    change_arrays(copy_dir, f"path_{row_idx}", other_first_path)
    with pytest.raises(ValueError, match=REJECTED):
        validate(copy_dir)


def test_validate_rejects_perfect_predictions(copy_dir):
    """Answers that the paths do not give are rejected even if they are right."""
    labels = FitConfig(ENV).source("test").labels.astype(np.int16)
    row_idx = first_row_idx(read_results(copy_dir), "confidence")
    change_arrays(copy_dir, f"prediction_{row_idx}", lambda _: labels)
    message = rf"row {row_idx} \(confidence, seed 0\): \d+ answers differ when run again"
    with pytest.raises(ValueError, match=message):
        validate(copy_dir)


def test_validate_rejects_changed_page(copy_dir):
    content = read_results(copy_dir)
    page = (copy_dir / "report.html").read_text()
    shown = percent(*content["routers"][1]["accuracy_at"][-1])
    assert shown in page

    (copy_dir / "report.html").write_text(page.replace(shown, "99.9"))
    with pytest.raises(ValueError, match=r"`report.html` does not follow from results.json"):
        validate(copy_dir)


def test_validate_rejects_other_images_in_gallery(copy_dir):
    """Even if the page shows them as well."""
    with Image.open(copy_dir / "gallery.png") as picture:
        pixels = np.array(picture)
    pixels[0, 0] += 1
    Image.fromarray(pixels).save(copy_dir / "gallery.png")
    write_results(copy_dir, read_results(copy_dir))
    with pytest.raises(ValueError, match=r"`gallery.png` must show the images"):
        validate(copy_dir)


@pytest.mark.parametrize("content", [None, b"", b"text"], ids=["missing", "empty", "text"])
def test_validate_rejects_gallery_that_is_no_picture(copy_dir, content):
    (copy_dir / "gallery.png").unlink()
    if content is not None:
        (copy_dir / "gallery.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"`gallery.png` must show the images"):
        validate(copy_dir)


def test_validate_rejects_changed_chart(copy_dir):
    file = copy_dir / "report.html"
    page = file.read_text()
    assert "oracle 9" in page
    file.write_text(page.replace("oracle 9", "oracle 8"))
    with pytest.raises(ValueError, match=r"`report.html` does not follow from results.json"):
        validate(copy_dir)


def as_drawn_by_other_matplotlib(report_dir):
    """A report whose charts another version of Matplotlib has drawn."""
    content = read_results(report_dir)
    content["provenance"]["matplotlib"] = "0.1"
    write_results(report_dir, content)
    file = report_dir / "report.html"
    file.write_text(file.read_text().replace("<g>", "<g >"))


def test_validate_accepts_charts_of_other_matplotlib(copy_dir):
    as_drawn_by_other_matplotlib(copy_dir)
    validate(copy_dir)


def test_validate_rejects_changed_page_of_other_matplotlib(copy_dir):
    """Only the charts may differ."""
    as_drawn_by_other_matplotlib(copy_dir)
    file = copy_dir / "report.html"
    file.write_text(file.read_text().replace("Mean and sample", "Means and sample"))
    with pytest.raises(ValueError, match=r"`report.html` does not follow from results.json"):
        validate(copy_dir)


def test_validate_rejects_curves_without_logs(copy_dir):
    shutil.rmtree(router_dir(copy_dir, "ppo", 1) / "tensorboard")
    with pytest.raises(ValueError, match=r"`learning` must have 1 entries, got 2"):
        validate(copy_dir)


def test_validate_rejects_unknown_entry(copy_dir):
    content = read_results(copy_dir)
    content["rows"][0]["new"] = 1
    (copy_dir / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"`results.json` must hold what this version writes"):
        validate(copy_dir)


@pytest.mark.parametrize("key", ["paths", "by_class", "by_difficulty", "examples", "learning"])
def test_validate_says_how_to_renew_earlier_report(copy_dir, key):
    content = read_results(copy_dir)
    del content[key]
    (copy_dir / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"`{key}` must be in results.json.*compare` command"):
        validate(copy_dir)


NO_REPORT = (
    "`report` must be the folder of a finished comparison, got .*, which has no results.json"
)


def test_validate_rejects_unfinished_report(copy_dir):
    (copy_dir / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=NO_REPORT):
        validate(copy_dir)


@pytest.mark.parametrize("name", [".", "missing"])
def test_validate_rejects_dir_without_report(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=NO_REPORT):
        validate(tmp_path / name)


def drop(*keys):
    """A change of `results.json` that removes an entry, given by the way to it."""

    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    change.__name__ = "/".join(map(str, keys))
    return change


@pytest.mark.parametrize(
    "change",
    [
        drop("env"),
        drop("arguments"),
        drop("rows"),
        drop("seeds"),
        drop("provenance", "weights and images"),
        drop("rows", 3, "router"),
        drop("rows", 3, "accuracy"),
        drop("differences"),
        drop("routers", 0, "accuracy_at"),
    ],
    ids=lambda change: change.__name__,
)
def test_validate_names_what_is_missing(copy_dir, change):
    content = read_results(copy_dir)
    change(content)
    (copy_dir / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"`.*` (must|does not hold)|row \d+"):
        validate(copy_dir)


@pytest.mark.parametrize("name", ["results.json", "config.json", "paths.npz"])
@pytest.mark.parametrize("text", ["", "{", "[]", "PK"], ids=["empty", "cut", "list", "zip"])
def test_validate_names_damaged_file(copy_dir, name, text):
    (copy_dir / name).write_text(text)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        validate(copy_dir)


@pytest.mark.parametrize(
    "change",
    [
        lambda paths: paths.astype(np.float32),
        lambda paths: paths[:-1],
        lambda paths: paths[:, :-1],
        lambda paths: paths.astype(np.int64) + 100,
    ],
    ids=["floats", "fewer images", "fewer layers", "unknown sub-paths"],
)
def test_validate_rejects_paths_that_are_none(copy_dir, change):
    change_arrays(copy_dir, "path_7", change)
    with pytest.raises(ValueError, match=r"`path_7`|row 7 .*paths differ|`sub_paths`"):
        validate(copy_dir)
