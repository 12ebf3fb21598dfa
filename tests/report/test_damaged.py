"""One damaged value costs its own part of the page, and the page says so: never the report."""

import copy
import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from falseneg.report import write_report

WRONG = ("text", None, [], {}, [1], {"a": 1}, True, -1, 0, 1e308, -1e308, 10**400, float("nan"), float("inf"), "\udce9")
PER_IMAGE = "per_sample/epoch-00008.npz"


@pytest.fixture(scope="module")
def small(fake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    fake(images=60, epochs=8, clusters=(4,), thresholds=True).run(folder)
    arrays = dict(np.load(folder / "embedding.npz"))
    np.savez(folder / "embedding.npz", **{name: values[:20] for name, values in arrays.items()})  # PCA: fast
    pairs = pq.read_table(folder / "flagged.parquet")
    pq.write_table(pairs.take([*range(6), *range(len(pairs) - 6, len(pairs))]), folder / "flagged.parquet")
    return folder


@pytest.fixture(scope="module")
def comparison(fake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "comparison"
    folder.mkdir()
    fake(images=40).compare(folder, variants=("none", "fnc-attract", "oracle-attract"), seeds=(0, 1))
    shutil.rmtree(folder / "runs")
    return folder


def page(folder):
    html = write_report(folder, folder.parent / "page.html").read_text()
    assert html.endswith("</html>")
    return html


def notes(html):
    return html.partition("Not everything could be shown")[2].partition("</details>")[0]


def places(value, path=()):
    """Where every value of a nested one is; of a list the first, a middle and the last entry."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        for index in sorted({0, len(value) // 2, len(value) - 1}):
            yield from places(value[index], (*path, index))


def changed(value, path, new):
    if not path:
        return new
    value = copy.deepcopy(value)
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    if new is places:  # the key goes
        del inside[path[-1]]
    else:
        inside[path[-1]] = new
    return value


def mutations(value):
    yield from ((path, new) for path in places(value) for new in (*WRONG, *([places] if path else [])))


def drawn(cases, every, most=8):
    """All cases, or a seeded sample of them: a page takes a while."""
    cases = list(cases)
    return cases if every else random.Random(0).sample(cases, min(most, len(cases)))


SWEEP = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)


def test_a_whole_folder_leaves_nothing_out(small):
    assert notes(page(small)) == ""


def test_a_whole_comparison_leaves_nothing_out(fake, tmp_path):
    folder = tmp_path / "comparison"
    folder.mkdir()
    fake(images=40).compare(folder, variants=("none", "fnc-attract", "oracle-attract"), seeds=(0, 1))
    assert notes(page(folder)) == ""


@pytest.mark.parametrize("error", [TypeError, KeyError, ZeroDivisionError])
def test_a_headline_and_verdicts_that_cannot_be_made_are_said(small, comparison, monkeypatch, error):
    def fails(*given):
        raise error

    for name in ("run_headline", "headline", "judge"):
        monkeypatch.setattr(f"falseneg.report.verdict.{name}", fails)
    assert "the headline cannot be drawn" in notes(page(small))
    said = notes(page(comparison))
    assert "the headline cannot be drawn" in said and "the verdicts cannot be drawn" in said


def test_a_fault_of_the_program_is_not_hidden(small, monkeypatch):
    monkeypatch.setattr("falseneg.report.verdict.run_headline", lambda run: run.no_such_attribute)
    with pytest.raises(AttributeError):
        page(small)


@SWEEP
@pytest.mark.parametrize("name", ["run.json", "similarities.json"])
def test_any_wrong_value_of_a_json_file(small, name, every):
    path = small / name
    text = path.read_text()
    content = json.loads(text)
    try:
        for where, new in drawn(mutations(content), every):
            path.write_text(json.dumps(changed(content, where, new)))
            page(small)
    finally:
        path.write_text(text)


@SWEEP
def test_any_wrong_value_of_the_metrics(small, every):
    path = small / "metrics.jsonl"
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    try:
        for number in (0, 1, len(lines) // 2, len(lines) - 2, len(lines) - 1):
            for where, new in drawn(mutations(lines[number]), every, most=3):
                given = [*lines[:number], changed(lines[number], where, new), *lines[number + 1 :]]
                path.write_text("\n".join(map(json.dumps, given)) + "\n")
                page(small)
    finally:
        path.write_text(text)


def test_wrong_figures_are_said_and_the_rest_is_drawn(small):
    path = small / "metrics.jsonl"
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    next(line for line in lines if line["kind"] == "epoch")["precision"] = "high"
    try:
        path.write_text("\n".join(map(json.dumps, lines)) + "\n")
        html = page(small)
    finally:
        path.write_text(text)
    assert "unusable values in metrics.jsonl are left out (1)" in notes(html)
    assert "<b>Precision</b>" in html and "<b>Loss</b>" in html


@SWEEP
def test_any_wrong_value_of_results(comparison, every):
    path = comparison / "results.json"
    text = path.read_text()
    content = json.loads(text)
    try:
        for where, new in drawn(mutations(content), every, most=20):
            path.write_text(json.dumps(changed(content, where, new)))
            page(comparison)
    finally:
        path.write_text(text)


def damaged_arrays(values):
    """Wrong types, shapes, sizes and numbers in place of an array."""
    yield np.array([{"an": "object"}], dtype=object)
    yield values.astype(str)
    yield values[:-1] if values.ndim else values[None]
    yield values[None]
    yield values.reshape(-1)[:0]
    if values.dtype.kind in "iufb":
        yield values.astype(complex)
        yield values.astype(float) * np.nan
        yield np.full_like(values, np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1)
        yield -np.ones_like(values) if values.dtype.kind in "if" else values[..., None]
    if values.dtype.kind == "f":
        yield np.full_like(values, np.finfo(values.dtype).max)
        yield np.full_like(values, np.inf)


@SWEEP
@pytest.mark.parametrize("name", ["thumbnails.npz", "embedding.npz", "clusters.npz", PER_IMAGE])
def test_any_wrong_array(small, name, every):
    path = small / name
    before = path.read_bytes()
    arrays = dict(np.load(path))
    try:
        given = [arrays | {key: wrong} for key, values in arrays.items() for wrong in damaged_arrays(values)]
        given += [{other: kept for other, kept in arrays.items() if other != key} for key in arrays]
        for case in drawn(given, every):
            np.savez(path, **case)
            page(small)
    finally:
        path.write_bytes(before)


def test_arrays_that_unpack_to_too_much_are_left_out(small):
    path = small / "thumbnails.npz"
    before = path.read_bytes()
    try:
        np.savez_compressed(path, rows=np.zeros(1, int), images=np.zeros((1, 16000, 16000, 3), np.uint8))
        assert path.stat().st_size < 2**20
        assert "thumbnails.npz cannot be read" in notes(page(small))
    finally:
        path.write_bytes(before)


def test_wrong_columns_of_flagged_pairs(small):
    path = small / "flagged.parquet"
    before = path.read_bytes()
    table = pq.read_table(path)
    try:
        for place, name in enumerate(table.column_names):
            pq.write_table(table.drop_columns([name]), path)
            page(small)
            for wrong in (["text"], [0.5], [[1]], [None], [True], ["x" * 5000]):
                pq.write_table(table.set_column(place, name, pa.array(wrong * len(table))), path)
                page(small)
    finally:
        path.write_bytes(before)


@SWEEP
@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"[" * 100_000, b"\x00" * 50, b"PK\x03\x04"])
def test_files_of_anything(small, damage, every):
    for path in drawn(sorted(path for path in small.rglob("*") if path.is_file()), every, most=2):
        before = path.read_bytes()
        try:
            for content in (damage, before[: len(before) // 2], before[:100] + damage + before[110:]):
                path.write_bytes(content)
                page(small)
        finally:
            path.write_bytes(before)
