"""Settings every test runs under, and which of the tests run."""

import os
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import pytest
from hypothesis import settings
from sampling import Case, read_times, sample, seconds_of, write_times

# A silent broadcast between arrays of different rank is how batch axes get mixed up.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Examples are the same in every run; the first call of a test compiles, so none is timed.
settings.register_profile("rnnjax", deadline=None, derandomize=True)
settings.load_profile("rnnjax")

# Programs: of those who draw the numbers anew, with packages that no test needs; and of the newest
# JAX, run by a test in a process of its own.
collect_ignore = ["reference/make_golden.py", "engine/interpreted_kernels.py"]

CHECKOUT = Path(__file__).parents[1]
_sampled = pytest.StashKey[bool]()
_found_in_checkout = pytest.StashKey[set[str]]()
_started = pytest.StashKey[float]()
_since_cleared = 0
_compiles_quickly = False


@pytest.fixture
def float64():
    """JAX computes in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def float64_of_others():
    """JAX computes in float64, and broadcasts ranks: so Flax and Keras add their biases."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def quick_compile():
    """XLA optimises little, for suites of small programs by the hundred.

    Compiling is most of their time, and what they hold the library to is mathematics. That the
    optimised programs keep to it, too, is seen by ``tests/reference`` and by all that runs scripts.
    """


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Compile as the test asks (``quick_compile``), before its fixtures of any scope are made.

    JAX keeps a compiled program by its function and shapes, not by how it was optimised: a test
    that trains would find the initialiser of another test, whose last bits are others.
    """
    global _compiles_quickly
    quick = "quick_compile" in item.fixturenames
    if quick != _compiles_quickly:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quick)
        _compiles_quickly = quick


def pytest_runtest_logfinish(nodeid, location):
    """Drop compiled programs now and then: kept, thousands of them use up a process's memory maps.

    Linux gives a process 65,530 of these; XLA takes several for each program and dies without one.
    A test is over here, its fixtures too: nothing is dropped in the middle of an ``enable_x64``.
    """
    global _since_cleared
    _since_cleared += 1
    if _since_cleared >= 300:
        jax.clear_caches()
        _since_cleared = 0


# Which tests run: a sample where nobody said which (tests/sampling.py), all with --full.


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run every case of every test")
    # Given with "=": pytest looks for paths among its arguments before it reads this file.
    parser.addoption(
        "--without-passed", metavar="FILE", help="leave out what FILE, of pytest -rap, calls passed"
    )
    parser.addoption(
        "--record-times", action="store_true", help="write tests/times.json: what each case takes"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "full: no part of the sample")
    config.addinivalue_line("markers", "devices: what holds of several devices and processes")
    config.addinivalue_line("markers", "kept: one case is in the sample however long it takes")
    config.addinivalue_line("markers", "every_value: also of parameters whose cases take long")
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        config.stash[_sampled] = config.workerinput["sampled"]
        return
    named = config.args_source is config.ArgsSource.ARGS or config.option.keyword
    config.stash[_sampled] = not (config.option.full or named)
    config.stash[_found_in_checkout] = _entries()
    if config.option.record_times:
        config.pluginmanager.register(Times())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """A process of pytest-xdist cannot know how its tests were asked for."""
    node.workerinput["sampled"] = node.config.stash[_sampled]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if config.option.without_passed:
        passed = _passed(Path(config.option.without_passed))
        _keep(config, items, {item for item in items if item.nodeid not in passed})
    if config.stash[_sampled]:
        _keep(config, items, _sample(items))


def _passed(written):
    """The cases that an earlier run names as passed."""
    lines = written.read_text("utf-8").splitlines()
    names = {line.removeprefix("PASSED ") for line in lines if line.startswith("PASSED ")}
    if not names:
        raise pytest.UsageError(f"--without-passed must name what pytest -rap wrote, got {written}")
    return names


def _keep(config, items, kept):
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _sample(items):
    files = defaultdict(lambda: defaultdict(list))
    for item in items:
        if not item.get_closest_marker("full"):
            files[item.path][item.nodeid.split("[")[0]].append(item)
    kept, seconds = set(), read_times()
    for tests in files.values():
        known = [seconds_of([i.nodeid for i in t], seconds) for t in tests.values()]
        table = [
            [Case(_values(item), spent) for item, spent in zip(cases, times, strict=True)]
            for cases, times in zip(tests.values(), known, strict=True)
        ]
        first = [cases[0] for cases in tests.values()]
        places = sample(
            table,
            every_value=first[0].get_closest_marker("every_value") is not None,
            kept={n for n, item in enumerate(first) if item.get_closest_marker("kept")},
        )
        for cases, chosen in zip(tests.values(), places, strict=True):
            kept.update(cases[place] for place in chosen)
    return kept


def _values(item):
    """The parameters of a case by name; where a value has no hash, the object itself counts."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    named = set()
    for name, value in given.items():
        try:
            hash(value)
        except TypeError:
            value = id(value)
        named.add((name, type(value), value))
    return frozenset(named)


def pytest_report_header(config):
    if config.stash[_sampled]:
        return "a sample of the tests: pytest --full runs all"
    return None


# How long each case takes, setting up included and with the processes it starts.


def _processor_time():
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    item.stash[_started] = _processor_time()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "teardown" and _started in item.stash:
        report.user_properties.append(("processor", _processor_time() - item.stash[_started]))
    return report


class Times:
    """The times of all cases, from every process of pytest-xdist, written at the end."""

    def __init__(self):
        self.seconds = {}

    def pytest_runtest_logreport(self, report):
        for _, seconds in report.user_properties:
            self.seconds[report.nodeid] = seconds

    def pytest_sessionfinish(self):
        write_times(self.seconds)


# Nothing is left behind.


def _entries():
    """What lies in the checkout, and in the folder where scripts put their runs."""
    own = {".pytest_cache", ".hypothesis", "__pycache__"}  # of pytest, Hypothesis and Python
    return {
        str(path.relative_to(CHECKOUT))
        for folder in (CHECKOUT, CHECKOUT / "runs")
        if folder.is_dir()
        for path in folder.iterdir()
        if path.name not in own
    }


def pytest_sessionfinish(session, exitstatus):
    """A run of the tests that leaves files in the checkout fails."""
    before = session.config.stash.get(_found_in_checkout, None)
    left = sorted(_entries() - before) if before is not None else []
    if left:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(f"ERROR: the tests left in the checkout: {', '.join(left)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
