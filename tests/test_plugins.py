import asyncio
import subprocess
import sys

import pytest

from ttsa_guard.config import GuardConfig
from ttsa_guard.errors import PluginError
from ttsa_guard.guard import Guard
from ttsa_guard.plugins import NoOptions, Plugins, Registered, hookimpl
from ttsa_guard.testing import ScriptedBackend, scripted_guard

HEAVY = {"torch", "transformers", "nemoguardrails"}
MODERATOR = """
from ttsa_guard.plugins import hookimpl

@hookimpl
def ttsa_register_moderators(register):
    register("{name}", dict)
"""


class Offers:
    """A plugin that registers moderators under the given names."""

    def __init__(self, *names):
        self.names = names

    @hookimpl
    def ttsa_register_moderators(self, register):
        for name in self.names:
            register(name, dict)


class Embeds(ScriptedBackend):
    """Takes embeddings."""

    token_norm = 1.0

    async def embed(self, ids):
        raise NotImplementedError


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution with one entry point on the path, as pip would do."""

    def install(package, name, source):
        folder = tmp_path / package
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[ttsa_guard]\n{name} = {package}\n")
        (folder / f"{package}.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))

    return install


def fails(call, *args):
    with pytest.raises(PluginError) as caught:
        call(*args)
    assert caught.value.hint
    return str(caught.value)


def imported_by(code):
    """Names of the modules in memory after `code` has run in a fresh interpreter."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ["prefill", "baselines.resample"])
def test_our_own_plugins_enter_by_the_entry_point(name):
    module, name = f"ttsa_guard.steerers.{name}", name.rpartition(".")[2]
    assert Plugins().installed[name].value == module
    assert Plugins().load("steerers", name).name == name


def test_an_old_name_works_and_is_warned_of_once(caplog):
    plugins = Plugins()
    assert {plugins.load("steerers", "kick").name for _ in range(2)} == {"random_perturbation"}
    [warning] = caplog.records
    assert (warning.levelname, warning.name) == ("WARNING", "ttsa_guard.plugins")
    assert "'kick' is now called 'random_perturbation'" in warning.getMessage()


def test_an_old_name_keeps_its_options():
    [steerer] = Guard.from_config(
        GuardConfig.parse({"steerers": [{"use": "kick", "options": {"kicks": 3}}]}),
        backend=Embeds([]),
    ).steerers
    assert (steerer.name, steerer.options.directions) == ("random_perturbation", 3)


def test_an_old_name_is_free_for_others(install, caplog):
    install("another_package", "kick", MODERATOR.format(name="kick"))
    assert Plugins().load("moderators", "kick").factory is dict
    assert not caplog.records


def test_an_old_name_is_no_entry_point_of_ours():
    assert "kick" not in Plugins().installed


def test_nothing_heavy_is_imported():
    seen = imported_by(
        "import ttsa_guard\nfrom ttsa_guard import *\nfrom ttsa_guard.testing import"
        " *\nscripted_guard(['hi'])"
    )
    assert "ttsa_guard.guard" in seen
    assert not seen & HEAVY


def test_only_what_is_named_is_imported():
    seen = imported_by(
        "from ttsa_guard.plugins import Plugins\nPlugins().load('steerers', 'prefill')"
    )
    assert "ttsa_guard.steerers.prefill" in seen
    assert not seen & {
        "ttsa_guard.steerers.baselines.resample",
        "ttsa_guard.moderators.lite",
        *HEAVY,
    }


def test_a_foreign_plugin(install):
    install("foreign", "strict", MODERATOR.format(name="strict"))
    plugins = Plugins()
    assert plugins.load("moderators", "strict") == Registered("strict", dict, NoOptions)
    assert plugins.load("moderators", "strict") is plugins.load("moderators", "strict")


def test_an_object_can_be_added_without_an_entry_point():
    plugins = Plugins()
    plugins.add(Offers("mine"))
    assert plugins.load("moderators", "mine").factory is dict


def test_two_managers_share_nothing():
    Plugins().add(Offers("mine"))
    fails(Plugins().load, "moderators", "mine")


def test_an_unknown_name_names_the_nearest_one_and_pip():
    message = fails(Plugins().load, "steerers", "prefil")
    assert message.startswith(
        "no plugin named 'prefil' is installed\n  hint: did you mean 'prefill'?"
    )
    assert "pip install" in message


def test_a_plugin_of_another_kind():
    assert "'prefill' registers no moderator of that name" in fails(
        Plugins().load, "moderators", "prefill"
    )


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import no_such_module_anywhere", id="missing-dependency"),
        pytest.param("def broken(:", id="syntax"),
        pytest.param("raise RuntimeError('no licence')", id="raises"),
    ],
)
def test_a_plugin_that_cannot_be_imported_names_its_package(install, source):
    install("damaged", "damaged", source)
    message = fails(Plugins().load, "moderators", "damaged")
    assert "plugin 'damaged' cannot be imported" in message
    assert "hint: reinstall damaged" in message


def test_two_packages_with_the_same_plugin_are_refused(install):
    install("one", "strict", MODERATOR.format(name="strict"))
    install("two", "strict", MODERATOR.format(name="strict"))
    message = fails(Plugins().load, "moderators", "strict")
    assert "two packages bring a plugin named 'strict'" in message
    assert "one" in message
    assert "two" in message


def test_two_plugins_that_register_one_name_are_refused():
    plugins = Plugins()
    plugins.add(Offers("mine"))
    assert "two plugins register the moderator 'mine'" in fails(plugins.add, Offers("mine"))


def test_a_plugin_cannot_be_added_twice():
    plugins, offers = Plugins(), Offers("mine")
    plugins.add(offers)
    fails(plugins.add, offers)


class WrongHook:
    @hookimpl
    def ttsa_register_moderator(self, register): ...


class WrongArgument:
    @hookimpl
    def ttsa_register_moderators(self, registrar): ...


class Raises:
    @hookimpl
    def ttsa_register_moderators(self, register):
        raise ValueError("no licence")


@pytest.mark.parametrize(
    "plugin", [WrongHook(), WrongArgument(), Raises()], ids=lambda p: type(p).__name__
)
def test_a_plugin_that_does_not_fit_the_hooks_is_refused(plugin):
    assert "does not fit the hooks" in fails(Plugins().add, plugin)


class Observer:
    def __init__(self, error=None):
        self.error, self.seen = error, []

    @hookimpl
    def ttsa_guard_finished(self, record):
        self.seen.append(record)
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [None, RuntimeError("boom"), asyncio.CancelledError(), BaseException()],
    ids=["works", "raises", "cancels", "panics"],
)
@pytest.mark.parametrize("answer", ["a good answer", "a bad answer"], ids=["pass", "fallback"])
def test_an_observer_sees_every_record_and_changes_nothing(error, answer):
    observer, plugins = Observer(error), Plugins()
    plugins.add(observer)
    outcome = asyncio.run(scripted_guard(plugins=plugins).review("hello", answer))
    assert observer.seen == [outcome.record]
    assert outcome.action == ("pass" if "good" in answer else "fallback")


def test_an_observer_that_fails_keeps_the_record_from_no_other():
    observers, plugins = [Observer(), Observer(RuntimeError("boom")), Observer()], Plugins()
    for observer in observers:
        plugins.add(observer)
    outcome = asyncio.run(scripted_guard(plugins=plugins).review("hello", "a good answer"))
    assert [observer.seen for observer in observers] == [[outcome.record]] * 3
