import pytest

from falseneg.cli.configuration import build, resolve, run_settings
from falseneg.cli.parser import run_parser
from falseneg.compare.variants import BY_DEFAULT, changed, named_variants
from falseneg.detectors import NoDetection, Oracle, SupportSet
from falseneg.strategy import ATTRACT, ELIMINATE, IGNORE

BASE = {
    "method": {"class_path": "falseneg.SimCLR", "init_args": {"views": 2, "support_views": 0}},
    "detector": {"class_path": "falseneg.FixedThreshold", "init_args": {"threshold": 0.5}},
    "strategy": "ignore",
    "epochs": 3,
}


def test_overrides_go_deep_where_the_class_stays():
    result = changed(BASE, {"method": {"init_args": {"support_views": 4}}})
    assert result["method"] == {"class_path": "falseneg.SimCLR", "init_args": {"views": 2, "support_views": 4}}
    assert result["epochs"] == 3
    assert BASE["method"]["init_args"]["support_views"] == 0


def test_another_class_takes_nothing_over():
    result = changed(BASE, {"detector": {"class_path": "falseneg.SupportSet", "init_args": {"top_k": 2}}})
    assert result["detector"] == {"class_path": "falseneg.SupportSet", "init_args": {"top_k": 2}}
    assert changed(BASE, {"detector": "Oracle"})["detector"] == "Oracle"


def test_the_same_class_keeps_its_other_options():
    same = {"detector": {"class_path": "falseneg.FixedThreshold", "init_args": {"space": "support"}}}
    assert changed(BASE, same)["detector"]["init_args"] == {"threshold": 0.5, "space": "support"}


def test_shares_follow_the_number_of_classes():
    # The paper's best: the top 8 of 8,190 candidates in 1,000 classes for elimination, the top 4 for attraction.
    variants = named_variants(1000)
    shares = {name: variants[name]["detector"]["init_args"]["share"] for name in ("fnc-eliminate", "fnc-attract")}
    assert {name: round(share * 8190) for name, share in shares.items()} == {"fnc-eliminate": 8, "fnc-attract": 4}


def test_without_a_number_of_classes_there_is_no_fnc():
    assert set(BY_DEFAULT) - set(named_variants(None)) == {"fnc-eliminate", "fnc-attract"}


def test_support_views_of_the_configuration_stay():
    assert named_variants(10, support_views=8)["fnc-attract"]["method"]["init_args"]["support_views"] == 8
    assert named_variants(10)["fnc-attract"]["method"]["init_args"]["support_views"] >= 4


@pytest.mark.parametrize(
    "name, detector, strategy",
    [
        ("none", NoDetection, IGNORE),
        ("fnc-eliminate", SupportSet, ELIMINATE),
        ("fnc-attract", SupportSet, ATTRACT),
        ("oracle", Oracle, ATTRACT),
        ("oracle-eliminate", Oracle, ELIMINATE),
    ],
)
def test_they_build_what_they_say(name, detector, strategy):
    parser = run_parser("compare", "")
    base, images = resolve(run_settings(parser, parser.parse_args(["--config", "digits"])))
    run = build(changed(base, named_variants(10)[name]), images)
    assert (type(run.detector), run.strategy) == (detector, strategy)
    assert bool(run.method.support_views) == name.startswith("fnc")
    run.check()
