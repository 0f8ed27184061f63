"""Names and spec strings: what is read, what is refused and with which words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from robustbench_lite import registry
from robustbench_lite.errors import BadSpec, UnknownName
from robustbench_lite.registry import ATTACKS, Registry, Spec, number, parameters, split


@dataclass(frozen=True)
class Thing:
    count: Annotated[int, Field(ge=1)] = 3
    size: float = 0.5
    mode: Literal["fast", "slow"] = "fast"
    on: bool = False
    name: str = "x"
    most: float | None = 2.0
    inner: int = field(default=7, init=False)


@dataclass(frozen=True)
class NeedsPath:
    path: str
    count: int = 1


def made(**things: Callable[..., Any]) -> Registry:
    return Registry("thing", (), "robustbench_lite.things", found=dict(things), loaded=True)


# --- taking a spec apart ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("pgd", Spec("pgd")),
        (" pgd ", Spec("pgd")),
        ("pgd:steps=5", Spec("pgd", None, {"steps": "5"})),
        ("pgd:steps=5,loss=dlr", Spec("pgd", None, {"steps": "5", "loss": "dlr"})),
        ("foolbox:LinfPGD", Spec("foolbox", "LinfPGD")),
        ("foolbox:LinfPGD:steps=5,random_start=false", Spec("foolbox", "LinfPGD", {"steps": "5", "random_start": "false"})),
        ("npz:/data/a,b.npz", Spec("npz", "/data/a,b.npz")),
        (r"npz:C:\data\test.npz", Spec("npz", r"C:\data\test.npz")),
        ("imagefolder:/a:b/c,size=7", Spec("imagefolder", "/a:b/c", {"size": "7"})),
        ("npz:/a b/c.npz,key=x=y", Spec("npz", "/a b/c.npz", {"key": "x=y"})),
        ("x:key=", Spec("x", None, {"key": ""})),
        ("x:attack=(apgd:steps=5,loss=dlr),eps=8/255", Spec("x", None, {"attack": "apgd:steps=5,loss=dlr", "eps": "8/255"})),
        ("npz:/data (1)/a.npz,size=7", Spec("npz", "/data (1)/a.npz", {"size": "7"})),
    ],
)
def test_a_spec_is_taken_apart(text: str, spec: Spec) -> None:
    assert Spec.parse(text) == spec


def test_an_empty_name_and_a_repeated_key_are_refused() -> None:
    for text in ("", "  ", ":steps=5"):
        with pytest.raises(BadSpec, match="empty name"):
            Spec.parse(text)
    with pytest.raises(BadSpec, match="'steps' is given twice"):
        Spec.parse("pgd:steps=5,steps=6")
    with pytest.raises(BadSpec, match="'path' is given twice"):
        made(needs=NeedsPath).build("needs:/a,path=/b")


# --- reading values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("thing", Thing()),
        ("thing:count=5,size=8/255", Thing(5, 8 / 255)),
        ("thing:size=1e-3,mode=slow,on=true", Thing(3, 1e-3, "slow", True)),
        ("thing:count=8/2", Thing(4)),
        ("thing:5", Thing(5)),
        ("thing:name=8/255", Thing(name="8/255")),
        ("thing:name=none", Thing(name="none")),
        ("thing:most=none", Thing(most=None)),
        ("thing:most=None", Thing(most=None)),
        ("thing:most=3/2", Thing(most=1.5)),
    ],
)
def test_values_are_read_as_the_types_that_are_declared(spec: str, expected: Thing) -> None:
    assert made(thing=Thing).build(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("thing:count=five", "thing:count=five: input should be a valid integer"),
        ("thing:count=1.5", "thing:count=1.5: input should be a valid integer"),
        ("thing:count=7/2", "thing:count=7/2: input should be a valid integer"),
        ("thing:count=0", "greater than or equal to 1"),
        ("thing:mode=medium", "input should be 'fast' or 'slow'"),
        ("thing:on=perhaps", "valid boolean"),
        ("thing:size=1/0", "'1/0' is not a number"),
        ("thing:size=nan", "thing:size=nan: .*finite"),
        ("thing:size=inf", "thing:size=inf: .*finite"),
        ("thing:most=-inf", "thing:most=-inf: .*finite"),
        ("thing:size=none", "valid number"),
        ("thing:colour=red", "thing has no parameter 'colour'"),
        ("thing:cuont=5", "no parameter 'cuont': did you mean 'count'"),
        ("thing:inner=5", "no parameter 'inner'"),
        ("needs", "needs needs path: write needs:path=..."),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_value(spec: str, message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        made(thing=Thing, needs=NeedsPath).build(spec)


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), ("1e-3", 1e-3), ("-2", -2.0), ("4.5/255", 4.5 / 255)])
def test_numbers(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "8/", "/255", "8/0", "inf", "nan", "1/2/3", "8:255", "1e999"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        number(text)


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(UnknownName, match=r"unknown attack 'pdg': did you mean 'pgd'.*robust-eval list attacks"):
        ATTACKS.build("pdg:steps=5")
    with pytest.raises(BadSpec, match="pgd has no parameter 'step': did you mean 'steps'"):
        ATTACKS.build("pgd:step=5")


PGD_FIELDS = {
    "steps": st.integers(1, 1000),
    "step_size": st.none() | st.floats(1e-6, 10),
    "restarts": st.integers(1, 50),
    "momentum": st.floats(0, 5),
    "loss": st.sampled_from(("ce", "dlr", "margin")),
}


@given(st.fixed_dictionaries({}, optional=PGD_FIELDS))
def test_the_spec_of_a_thing_builds_it_again(values: dict[str, Any]) -> None:
    attack = ATTACKS.get("pgd")(**values)
    spec = ATTACKS.spec_of(attack)
    assert ATTACKS.build(spec) == attack
    assert spec == "pgd" or len(spec.split(",")) <= len(values)


def test_the_spec_of_a_thing_names_what_differs_only() -> None:
    things = made(thing=Thing)
    assert things.spec_of(Thing()) == "thing"
    assert things.spec_of(Thing(count=4, on=True)) == "thing:count=4,on=True"
    assert things.build(things.spec_of(Thing(most=None, on=True))) == Thing(most=None, on=True)
    assert set(parameters(Thing)) == {"count", "size", "mode", "on", "name", "most"}


def test_a_value_that_is_a_spec_itself_stands_in_parentheses() -> None:
    things, nested = made(thing=Thing), Thing(name="sgm:gamma=0.5,steps=3+mi")
    assert things.spec_of(nested) == "thing:name=(sgm:gamma=0.5,steps=3+mi)"
    assert things.build(things.spec_of(nested)) == nested
    assert split("a:x=(b+c:y=1)+d") == ["a:x=(b+c:y=1)", "d"]


# --- registering -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["attack", "corruption", "defense", "model", "data", "report"])
def test_a_decorator_returns_what_it_was_given(kind: str) -> None:
    def thing() -> None: ...

    owner: Registry = getattr(registry, {"data": "DATA"}.get(kind, f"{kind.upper()}S"))
    try:
        assert getattr(registry, kind)("of this test")(thing) is thing
        assert owner.found["of this test"] is thing
    finally:
        del owner.found["of this test"]


def test_two_things_of_one_name_are_refused_and_one_thing_twice_is_not() -> None:
    things = made(thing=Thing)
    things.register("thing", Thing)
    with pytest.raises(ValueError, match=r"thing 'thing' is registered twice: .*Thing and .*NeedsPath"):
        things.register("thing", NeedsPath)
    assert things.found["thing"] is Thing


@dataclass
class Entry:
    name: str
    thing: Any
    value: str = "theirs:thing"

    def load(self) -> Any:
        if isinstance(self.thing, Exception):
            raise self.thing
        return self.thing


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Registry]]:
    def with_entries(*entries: Entry) -> Registry:
        monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == "robustbench_lite.attacks" else ())
        return Registry("attack", ("robustbench_lite.attacks",), "robustbench_lite.attacks", found=dict(ATTACKS.found))

    return with_entries


def test_an_entry_point_adds_a_name(fresh: Callable[..., Registry]) -> None:
    assert fresh(Entry("theirs", Thing)).build("theirs:count=9") == Thing(9)


def test_a_broken_entry_point_is_named_and_stops_nothing(fresh: Callable[..., Registry]) -> None:
    attacks = fresh(Entry("sick", ImportError("no module named gone")), Entry("theirs", Thing))
    assert {"pgd", "theirs"} <= set(attacks.names())
    assert "sick" not in attacks.names()
    with pytest.raises(BadSpec, match=r"'sick' could not be imported: ImportError: no module named gone \(entry point theirs:thing\)"):
        attacks.build("sick")


@pytest.mark.parametrize("thing", [ImportError("gone"), Thing])
def test_an_entry_point_cannot_take_or_spoil_a_name_of_ours(fresh: Callable[..., Registry], thing: Any) -> None:
    attacks = fresh(Entry("pgd", thing), Entry("theirs", Thing))
    assert type(attacks.build("pgd")).__module__ == "robustbench_lite.attacks.pgd"
    assert attacks.build("theirs") == Thing()
    assert "pgd" in attacks.broken
