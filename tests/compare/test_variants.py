import captioned
import pytest

import falseneg as fn
from falseneg.cli.configuration import build, resolve, run_settings, with_weights
from falseneg.cli.parser import run_parser
from falseneg.compare.other_runs import with_runs
from falseneg.compare.variants import BY_DEFAULT, NAMES, changed, named_variants
from falseneg.strategy import ATTRACT, ELIMINATE, IGNORE

OF_PAIRS = ("same-text", "same-image")
BASE = {
    "method": {"class_path": "falseneg.SimCLR", "init_args": {"views": 2, "support_views": 0}},
    "detector": {"class_path": "falseneg.FixedThreshold", "init_args": {"threshold": 0.5}},
    "strategy": "ignore",
    "epochs": 3,
    "batch_size": 64,
    "expected_classes": 10,
}


def test_overrides_go_deep_where_the_class_stays():
    result = changed(BASE, {"method": {"init_args": {"support_views": 4}}})
    assert result["method"] == {"class_path": "falseneg.SimCLR", "init_args": {"views": 2, "support_views": 4}}
    assert result["epochs"] == 3
    assert BASE["method"]["init_args"]["support_views"] == 0


@pytest.mark.parametrize("name", ["SimCLR", "falseneg.SimCLR"])
def test_a_class_may_be_named_by_its_bare_name(name):
    result = changed(BASE, {"method": {"class_path": name, "init_args": {"support_views": 4}}})
    assert result["method"] == {"class_path": "falseneg.SimCLR", "init_args": {"views": 2, "support_views": 4}}


def test_another_class_takes_nothing_over():
    result = changed(BASE, {"detector": {"class_path": "falseneg.SupportSet", "init_args": {"top_k": 2}}})
    assert result["detector"] == {"class_path": "falseneg.SupportSet", "init_args": {"top_k": 2}}
    assert changed(BASE, {"detector": "Oracle"})["detector"] == "Oracle"
    own = changed(BASE, {"detector": {"class_path": "mine.FixedThreshold"}})
    assert own["detector"] == {"class_path": "mine.FixedThreshold"}


def test_the_same_class_keeps_its_other_options():
    same = {"detector": {"class_path": "falseneg.FixedThreshold", "init_args": {"space": "support"}}}
    assert changed(BASE, same)["detector"]["init_args"] == {"threshold": 0.5, "space": "support"}


def test_shares_follow_the_number_of_classes():
    # The paper's best: the top 8 of 8,190 candidates in 1,000 classes for elimination, the top 4 for attraction.
    variants = named_variants({**BASE, "expected_classes": 1000}, 1_281_167)
    shares = {name: variants[name]["detector"]["init_args"]["share"] for name in ("fnc-eliminate", "fnc-attract")}
    assert {name: round(share * 8190) for name, share in shares.items()} == {"fnc-eliminate": 8, "fnc-attract": 4}


def test_without_a_number_of_classes_there_is_only_what_needs_none():
    without = named_variants({**BASE, "expected_classes": None}, 1000)
    assert set(without) == {"none", "sogclr", "moco", "relative-to-positive", "wcl", "oracle", "oracle-eliminate"}
    assert list(named_variants(BASE, 1000)) == [name for name in NAMES if name not in OF_PAIRS]
    pairs = {**BASE, "method": {"class_path": "CLIP", "init_args": {"support_views": 0}}}
    assert list(named_variants(pairs, 1000)) == [name for name in NAMES if not name.startswith(("moco", "second-pass"))]
    assert set(BY_DEFAULT) < set(NAMES)


def test_support_views_of_the_configuration_stay():
    own = {**BASE, "method": {"class_path": "falseneg.SimCLR", "init_args": {"support_views": 8}}}
    for name in ("fnc-attract", "moco-fnc-attract"):
        assert named_variants(own, 1000)[name]["method"]["init_args"]["support_views"] == 8
        crops = {**BASE, "multi_crop": [{"number": 2, "size": 6}, {"number": 3, "size": 4}]}
        assert named_variants(crops, 1000)[name]["method"]["init_args"]["support_views"] == 5
        assert named_variants(BASE, 1000)[name]["method"]["init_args"]["support_views"] >= 4


@pytest.mark.parametrize(
    "images, batch_size, epochs, bank, momentum",
    [
        (1_281_167, 256, 200, 65_536, 0.999),  # as MoCo itself
        (1437, 128, 15, 718, 0.9),
        (150, 128, 15, 128, 0.9),
        (10_000, 100, 8, 5_000, 0.975),  # 800 steps: over 40 of them
    ],
)
def test_the_bank_and_the_momentum_suit_the_data(images, batch_size, epochs, bank, momentum):
    variant = named_variants({**BASE, "batch_size": batch_size, "epochs": epochs}, images)["moco"]
    assert {key: variant["method"]["init_args"][key] for key in ("bank", "momentum")} == {
        "bank": bank,
        "momentum": momentum,
    }


def test_the_bank_holds_the_keys_of_a_step():
    views = {**BASE, "method": {"class_path": "falseneg.SimCLR", "init_args": {"views": 3}}}
    assert named_variants(views, 200)["moco"]["method"]["init_args"]["bank"] == 128


def test_moco_keeps_the_head_of_the_configuration():
    """MoCo's own default has no BatchNorm between the layers, SimCLR's has: only the method is to differ."""
    for given, expected in (({}, True), ({"head_batch_norm": False, "head_layers": 3}, False)):
        method = {"class_path": "falseneg.SimCLR", "init_args": {"encoder": {}, **given}}
        arguments = named_variants({**BASE, "method": method}, 200)["moco"]["method"]["init_args"]
        assert arguments["head_batch_norm"] is expected and arguments.get("head_layers") == given.get("head_layers")


def test_a_configuration_with_moco_keeps_its_own_bank():
    moco = {"class_path": "falseneg.MoCo", "init_args": {"encoder": {}, "bank": 7, "momentum": 0.5, "symmetric": True}}
    for name in ("moco", "moco-fnc-attract"):
        result = changed({**BASE, "method": moco}, named_variants({**BASE, "method": moco}, 1000)[name])["method"]
        assert {**result["init_args"], "support_views": 0} == {**moco["init_args"], "support_views": 0}


@pytest.fixture(scope="module")
def digits():
    parser = run_parser("compare", "")
    return resolve(run_settings(parser, parser.parse_args(["--config", "digits"])))


MADE_OF = {
    "none": ("SimCLR", "NoDetection", IGNORE, "InfoNCE"),
    "fnc-eliminate": ("SimCLR", "SupportSet", ELIMINATE, "InfoNCE"),
    "fnc-attract": ("SimCLR", "SupportSet", ATTRACT, "InfoNCE"),
    "ifnd": ("SimCLR", "IncrementalClusters", ELIMINATE, "InfoNCE"),
    "glofnd": ("SimCLR", "GlobalThreshold", ELIMINATE.renormalised(), "InfoNCE"),
    "batch-quantile": ("SimCLR", "StartAt", ELIMINATE.renormalised(), "InfoNCE"),
    "shared-threshold": ("SimCLR", "GlobalThreshold", ELIMINATE.renormalised(), "InfoNCE"),
    "sogclr": ("SimCLR", "NoDetection", IGNORE, "GlobalContrastive"),
    "sogclr-glofnd": ("SimCLR", "GlobalThreshold", ELIMINATE, "GlobalContrastive"),
    "moco": ("MoCo", "NoDetection", IGNORE, "InfoNCE"),
    "moco-fnc-attract": ("MoCo", "SupportSet", ATTRACT, "InfoNCE"),
    "debiased": ("SimCLR", "NoDetection", IGNORE, "Debiased"),
    "hard-negatives": ("SimCLR", "NoDetection", IGNORE, "HardNegatives"),
    "relative-to-positive": ("SimCLR", "RelativeToPositive", ELIMINATE, "InfoNCE"),
    "neighbour-graph": ("SimCLR", "NeighbourGraph", ELIMINATE, "InfoNCE"),
    "second-pass": ("SimCLR", "NeighbourGraph", ELIMINATE, "InfoNCE"),
    "wcl": ("SimCLR", "BatchComponents", ATTRACT, "InfoNCE"),
    "oracle": ("SimCLR", "Oracle", ATTRACT, "InfoNCE"),
    "oracle-eliminate": ("SimCLR", "Oracle", ELIMINATE, "InfoNCE"),
}


@pytest.mark.parametrize("name", MADE_OF)
def test_they_build_what_they_say(name, digits):
    base, images = digits
    run = build(with_runs(changed(base, named_variants(base, len(images))[name]), None), images)
    parts = type(run.method), type(run.detector), run.strategy, type(run.objective)
    assert tuple(getattr(part, "__name__", part) for part in parts) == MADE_OF[name]
    assert ("support" in run.method.streams) == ("fnc" in name)
    assert run.method.encoder.feature_dim == 128  # of the recipe's encoder, whatever the method
    run.check()


def test_those_of_pairs_build_what_they_say():
    parser = run_parser("compare", "")
    options = parser.parse_args(["--config", "clip/emoji"])
    base = {**with_weights(run_settings(parser, options)), "test": None}
    for name, overrides in named_variants(base, 1000).items():
        run = build(changed(base, overrides), captioned.CaptionedDigits())
        assert isinstance(run.method, fn.CLIP) and ("support" in run.method.streams) == ("fnc" in name)
        if name in OF_PAIRS:
            assert [part.space for part in run.detector.modules() if hasattr(part, "space")] == [
                name.removeprefix("same-")
            ]
        if "sogclr" in name:
            assert run.objective.relative
        run.check()
