"""Deliberate faults in the package, each beside a test that has to fail with it.

Run: `python -m tests.drills.faults`; about eight minutes on two cores. It works on copies of the
package.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Fault(NamedTuple):
    """A fault.

    Attributes:
        file: of the package.
        right: code that occurs once in the file.
        wrong: what replaces it.
        test: the test that fails then, as pytest names it.
    """

    file: str
    right: str
    wrong: str
    test: str


TESTS = "tests/experiments/test_validation.py::test_validate"
FAULTS = [
    # reward
    Fault(
        "routing/rewards.py",
        "return -loss_scale * loss",
        "return -loss",
        "tests/routing/test_rewards.py::test_task_term_of_known_answers",
    ),
    Fault(
        "envs/episodes.py",
        "reward=task - self.tradeoff * compute,",
        "reward=task - compute,",
        "tests/envs/test_routing.py::test_return_is_task_minus_priced_compute",
    ),
    Fault(
        "envs/episodes.py",
        "self.charged[batch_idx] = 0",
        "pass",
        "tests/envs/test_routing.py::test_return_is_task_minus_priced_compute",
    ),
    Fault(
        "routing/route_table.py",
        'np.argsort(self.compute, kind="stable")',
        'np.argsort(-self.compute, kind="stable")',
        "tests/routing/test_route_table.py::test_oracle_takes_cheaper_of_equal_paths",
    ),
    # costs
    Fault(
        "backbones/gallery.py",
        "return super().macs(channels) + gallery.macs",
        "return super().macs(channels)",
        "tests/training/test_retrieval.py::test_contract_holds",
    ),
    Fault(
        "backbones/segments.py",
        "return counter.get_total_flops() // 2",
        "return counter.get_total_flops()",
        "tests/backbones/test_offshelf.py",
    ),
    Fault(
        "routing/traversal.py",
        "macs[starting] += self.backbone.mac_table.stem",
        "macs[starting] += 0",
        "tests/backbones/test_macs.py::test_charged_macs_are_those_that_ran",
    ),
    Fault(
        "routing/spec.py",
        "cost[moving] += table.stem",
        "cost[moving] += 0",
        "tests/routing/test_route_table.py::test_table_states_match_live_states",
    ),
    Fault(
        "routing/spec.py",
        "if self.exits_read_glance:\n            cost",
        "if False:\n            cost",
        "tests/backbones/test_macs.py::test_static_macs_count_only_the_exit_taken",
    ),
    Fault(
        "experiments/evaluation.py",
        "macs=charged.macs + router_macs,",
        "macs=charged.macs,",
        "tests/experiments/test_evaluation.py::test_evaluate_charges_router_per_decision",
    ),
    Fault(
        "routing/spec.py",
        "return self.path_cost(state.path, self.time_table)",
        "return state.macs",
        "tests/envs/test_routing.py::test_rewards_charge_time",
    ),
    Fault(
        "routing/profiling.py",
        "nanoseconds = measured / batch_size",
        "nanoseconds = measured",
        "tests/routing/test_profiling.py::test_parts_are_those_of_the_mac_table",
    ),
    Fault(
        "routing/rollout.py",
        "return int(counter.get_total_flops()) // 2",
        "return int(counter.get_total_flops()) // 4",
        "tests/agents/test_fqi.py::test_decision_is_charged_its_matrix_products",
    ),
    # splits
    Fault(
        "data/cifar.py",
        "== HELD_OUT - 1",
        "== 0",
        "tests/data/test_cifar.py::test_route_gets_every_tenth_train_image",
    ),
    Fault(
        "data/cifar.py",
        'np.flatnonzero(held_out == (split == "route"))',
        'np.flatnonzero(held_out | (split == "train"))',
        "tests/data/test_cifar.py::test_train_and_route_share_no_original",
    ),
    Fault(
        "data/digits.py",
        '"test": quarter == 3}',
        '"test": quarter == 2}',
        "tests/data/test_digits.py::test_digit_is_in_exactly_one_split",
    ),
    Fault(
        "data/__init__.py",
        'if split != "test":',
        'if split == "train":',
        "tests/data/test_corruptions.py::test_nothing_but_test_is_corrupted",
    ),
    # masks
    Fault(
        "routing/spec.py",
        "sub_paths[distance.argmin()]",
        "sub_paths[distance.argmax()]",
        "tests/routing/test_spec.py::test_nearest_of_valid_action_is_itself",
    ),
    Fault(
        "routing/spec.py",
        "continuing[:, 0] = False",
        "pass",
        "tests/routing/test_spec.py::test_onward_is_nearest_that_is_no_exit",
    ),
    Fault(
        "routing/traversal.py",
        "if not set(exit_at) <= self.exit_layers:",
        "if False:",
        "tests/routing/test_traversal.py::test_step_rejects_exits_that_are_off",
    ),
    # statistics
    Fault(
        "experiments/statistics.py",
        "(2.5, 97.5)",
        "(25.0, 75.0)",
        "tests/experiments/test_statistics_bootstrap.py::test_mean_difference_interval_covers_truth",
    ),
    Fault(
        "experiments/statistics.py",
        "weights = np.bincount(originals, minlength=num_originals)[original]",
        "weights = np.bincount(originals, minlength=num_originals)[original] ** 2",
        "tests/experiments/test_statistics_bootstrap.py::test_mean_difference_interval_covers_truth",
    ),
    Fault(
        "experiments/statistics.py",
        "images=np.bincount(original),",
        "images=np.ones_like(np.bincount(original)),",
        "tests/experiments/test_statistics.py::test_interval_weighs_originals_by_images",
    ),
    # validation
    Fault(
        "experiments/validation.py",
        "ROUNDING = 1e-4",
        "ROUNDING = 1e-3",
        f"{TESTS}_rejects_difference_above_rounding",
    ),
    Fault(
        "experiments/validation.py",
        "ANSWERS = 0.001",
        "ANSWERS = 0.1",
        f"{TESTS}_rejects_false_answers_on_few_images",
    ),
    Fault(
        "experiments/validation.py",
        "CHOICES = 0.002",
        "CHOICES = 0.02",
        f"{TESTS}_rejects_path_of_one_image",
    ),
    Fault(
        "experiments/validation.py",
        "RETURN = 0.002",
        "RETURN = 0.02",
        f"{TESTS}_rejects_slightly_weaker_rival",
    ),
    Fault(
        "experiments/validation.py",
        "        _check_identity(report_dir, name, replace(fit_config, seed=seed))",
        "        pass",
        f"{TESTS}_rejects_exchanged_routers",
    ),
]


def copy_to(folder):
    """Copy the package and the tests."""
    for name in ("rnr_gym", "tests", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)


def status_of(tests, folder):
    """The exit status of pytest: 0 if tests pass, 1 if one fails, others for errors of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        check=False,
    )
    return done.returncode


def is_caught(fault):
    """Whether the fault's test fails with it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        copy_to(folder)
        path = folder / "rnr_gym" / fault.file
        path.write_text(path.read_text().replace(fault.right, fault.wrong))
        return status_of([fault.test], folder) == 1


def passes_without_faults():
    """Whether all of the tests pass in a copy of the code as it is."""
    with TemporaryDirectory() as name:
        copy_to(Path(name))
        return status_of(sorted({fault.test for fault in FAULTS}), Path(name)) == 0


def main():
    """Print which faults are caught; exit with 1 if one is not."""
    if not passes_without_faults():
        sys.exit("the tests fail without any fault")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        caught = list(pool.map(is_caught, FAULTS))
    for fault, found in zip(FAULTS, caught, strict=True):
        print(f"{'caught' if found else 'MISSED'}  {fault.file}: {fault.right.split(chr(10))[0]}")
    print(f"{sum(caught)} of {len(caught)} faults caught")
    sys.exit(not all(caught))


if __name__ == "__main__":
    main()
