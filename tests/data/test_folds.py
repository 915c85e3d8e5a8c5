"""Folds: what is judged is never learnt from, and a layout that does not fit says what would."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import FoldError
from data_pipeline.folds import CombinatorialConfig, FoldsConfig, Span, combinatorial, walk_forward
from product import ROOT

SMALL = {"train_sessions": 100, "validation_sessions": 0, "test_sessions": 30, "holdout_sessions": 50}
TINY = {"train_sessions": 1, "validation_sessions": 0, "purge_sessions": 0, "label_horizon_sessions": 0}
SHORT_GAP = {"purge_sessions": 5, "label_horizon_sessions": 5}

layouts = st.builds(
    FoldsConfig,
    scheme=st.sampled_from(["rolling", "expanding"]),
    train_sessions=st.integers(1, 600),
    validation_sessions=st.just(0) | st.integers(0, 300),
    test_sessions=st.integers(1, 120),
    step_sessions=st.none() | st.integers(1, 200),
    purge_sessions=st.integers(0, 40),
    label_horizon_sessions=st.integers(0, 25),
    embargo_sessions=st.integers(0, 10),
    count=st.none() | st.integers(1, 12),
    holdout_sessions=st.integers(1, 600),
)
combinations = st.builds(
    CombinatorialConfig,
    folds=st.integers(3, 8),
    test_folds=st.integers(2, 8),
    purge_sessions=st.integers(0, 20),
    label_horizon_sessions=st.integers(0, 15),
    embargo_sessions=st.integers(0, 60),
    holdout_sessions=st.integers(1, 300),
)
histories = st.integers(1, 3000), st.integers(0, 300)


def _ways_out(error: FoldError, sessions: int, config):
    """Yields (sessions, settings) for each remedy that the message states."""
    for way in str(error).rpartition("; ")[2].split(" or "):
        wanted = re.search(r"at least (\d+) sessions", way)
        changes = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", way)}
        yield int(wanted[1]) if wanted else sessions, type(config)(**{**config.model_dump(), **changes})


def test_walk_forward_spans_by_pencil():
    folds, final = walk_forward(300, 10, FoldsConfig(**SMALL, **SHORT_GAP, count=2))
    assert final.test == Span(250, 300)
    assert final.train == Span(145, 245)
    assert [fold.test for fold in folds] == [Span(185, 215), Span(215, 245)]
    assert [fold.train for fold in folds] == [Span(80, 180), Span(110, 210)]
    assert not any(fold.validation for fold in (*folds, final))


def test_walk_forward_inner_validation_ends_the_block_after_a_gap_by_pencil():
    config = FoldsConfig(**{**SMALL, "validation_sessions": 20}, **SHORT_GAP, embargo_sessions=2, count=1)
    (fold,), final = walk_forward(300, 10, config)
    assert (fold.train, fold.validation, fold.test) == (Span(106, 179), Span(186, 206), Span(213, 243))
    assert (final.train, final.validation, final.test) == (Span(143, 216), Span(223, 243), Span(250, 300))


def test_walk_forward_expanding_learns_from_all_that_is_past_by_pencil():
    folds, final = walk_forward(300, 10, FoldsConfig(**SMALL, **SHORT_GAP, scheme="expanding"))
    assert [fold.train for fold in folds] == [Span(10, stop) for stop in (120, 150, 180, 210)]
    assert [fold.test for fold in folds] == [Span(start, start + 30) for start in (125, 155, 185, 215)]
    assert final.train == Span(10, 245)


def test_walk_forward_wider_step_leaves_sessions_between_test_spans():
    folds, _ = walk_forward(400, 10, FoldsConfig(**SMALL, **SHORT_GAP, step_sessions=50, count=2))
    assert [fold.test for fold in folds] == [Span(265, 295), Span(315, 345)]


def test_walk_forward_default_is_the_longest_run_of_quarters():
    folds, final = walk_forward(3270, 260, FoldsConfig())
    assert {(len(f.train), len(f.validation), len(f.test)) for f in folds} == {(421, 63, 63)}
    assert (len(final.train), len(final.validation), len(final.test)) == (421, 63, 504)
    assert 0 <= folds[0].train.start - 260 < 63


@settings(max_examples=300, deadline=None)
@given(*histories, layouts)
@example(1371, 260, FoldsConfig())
@example(1370, 260, FoldsConfig())
@example(200, 0, FoldsConfig(**TINY, test_sessions=100, holdout_sessions=100))
def test_walk_forward_fits_or_says_what_would(sessions, warm_up, config):
    try:
        _assert_sound(sessions, warm_up, config)
    except FoldError as error:
        ways = list(_ways_out(error, sessions, config))
        assert ways
        for longer, mended in ways:
            _assert_sound(longer, warm_up, mended)
            if longer > sessions:
                with pytest.raises(FoldError, match=f"at least {longer}"):
                    walk_forward(longer - 1, warm_up, mended)
            lengths = ("train_sessions", "validation_sessions", "test_sessions", "holdout_sessions")
            assert all(getattr(mended, name) <= getattr(config, name) for name in lengths)
            if longer == sessions and mended.count != config.count and mended.train_sessions == config.train_sessions:
                with pytest.raises(FoldError, match=f"count={mended.count}$"):
                    walk_forward(sessions, warm_up, mended.model_copy(update={"count": mended.count + 1}))


def _assert_sound(sessions: int, warm_up: int, config: FoldsConfig) -> None:
    folds, final = walk_forward(sessions, warm_up, config)
    gap = config.purge_sessions + config.embargo_sessions
    assert config.purge_sessions >= config.label_horizon_sessions
    assert final.test == Span(sessions - config.holdout_sessions, sessions)
    assert folds[-1].test.stop == final.test.start - gap
    for fold in (*folds, final):
        assert warm_up <= fold.train.start < fold.train.stop
        assert len(fold.validation) == config.validation_sessions
        if fold.validation:
            assert fold.train.stop + gap == fold.validation.start
        assert fold.validation.stop + gap == fold.test.start
        length = fold.validation.stop - fold.train.start
        if config.scheme == "rolling":
            assert length == config.train_sessions
        else:
            assert fold.train.start == warm_up
            assert length >= config.train_sessions
    step = config.step_sessions or config.test_sessions
    assert all(len(fold.test) == config.test_sessions for fold in folds)
    assert all(later.test.start - earlier.test.start == step for earlier, later in pairwise(folds))
    assert all(earlier.test.stop <= later.test.start for earlier, later in pairwise(folds))
    if config.count is None:
        with pytest.raises(FoldError, match=f"count={len(folds)}$"):
            walk_forward(sessions, warm_up, config.model_copy(update={"count": len(folds) + 1}))
    else:
        assert len(folds) == config.count


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"purge_sessions": 4}, "purge_sessions 4 is below label_horizon_sessions 5"),
        ({"step_sessions": 29}, "step_sessions 29 is below test_sessions 30: test spans would overlap"),
        ({"validation_sessions": 95}, "validation_sessions 95 and a gap of 5 leave nothing of train_sessions 100"),
        ({"holdout_sessions": 400}, "holdout of 400"),
        ({"count": 9}, "too few for 9 folds"),
        ({"train_sessions": 1000}, "too few for 1 fold of 1000 + 30"),
    ],
)
def test_walk_forward_refusal_names_the_numbers_and_a_setting_to_change(changes, words):
    with pytest.raises(FoldError, match=rf"{re.escape(words)}.* set folds\.\w+=\d+"):
        walk_forward(300, 10, FoldsConfig(**{**SMALL, **SHORT_GAP, **changes}))


@pytest.mark.parametrize("scheme", ["rolling", "expanding"])
def test_walk_forward_window_before_each_test_span_is_complete_and_past(panel, scheme):
    window = 60
    warm_up = int(np.argmax(panel.ready.any(axis=1))) + window
    folds, final = walk_forward(len(panel.sessions), warm_up, FoldsConfig(scheme=scheme))
    for fold in (*folds, final):
        for span in (fold.train, fold.validation, fold.test):
            before = panel.features[span.start - window : span.start]
            assert before.shape[0] == window
            assert np.isfinite(before).all(axis=(0, 2)).any()


@settings(max_examples=100, deadline=None)
@given(*histories, combinations)
def test_combinatorial_fits_or_says_what_would(sessions, warm_up, config):
    try:
        _assert_apart(sessions, warm_up, config)
    except FoldError as error:
        ways = list(_ways_out(error, sessions, config))
        assert ways
        for longer, mended in ways:
            _assert_apart(longer, warm_up, mended)
            if longer > sessions:
                with pytest.raises(FoldError, match=f"at least {longer}"):
                    combinatorial(longer - 1, warm_up, mended)


def _assert_apart(sessions: int, warm_up: int, config: CombinatorialConfig) -> None:
    splits = combinatorial(sessions, warm_up, config)
    assert config.purge_sessions >= config.label_horizon_sessions
    end = sessions - config.holdout_sessions - config.purge_sessions
    after = config.purge_sessions + config.embargo_sessions
    for split in splits:
        assert split.train
        assert len(split.test) == config.test_folds == len(split.paths)
        for learnt in split.train:
            assert warm_up <= learnt.start < learnt.stop <= end
            for judged in split.test:
                assert learnt.stop + config.purge_sessions <= judged.start or judged.stop + after <= learnt.start
    for path in {path for split in splits for path in split.paths}:
        spans = sorted(span for split in splits for span, of in zip(split.test, split.paths, strict=True) if of == path)
        assert (spans[0].start, spans[-1].stop) == (warm_up, end)
        assert all(earlier.stop == later.start for earlier, later in pairwise(spans))


def test_combinatorial_splits_by_pencil():
    config = CombinatorialConfig(
        folds=3, test_folds=2, purge_sessions=2, label_horizon_sessions=2, embargo_sessions=3, holdout_sessions=8
    )
    splits = combinatorial(50, 10, config)  # parts 10..20, 20..30, 30..40
    assert [split.test for split in splits] == [
        (Span(10, 20), Span(20, 30)),
        (Span(10, 20), Span(30, 40)),
        (Span(20, 30), Span(30, 40)),
    ]
    assert [split.train for split in splits] == [(Span(35, 40),), (Span(25, 28),), (Span(10, 18),)]
    assert [split.paths for split in splits] == [(0, 0), (1, 0), (1, 1)]


def test_combinatorial_too_many_test_folds_says_how_many_would_do():
    with pytest.raises(FoldError, match="test_folds 6 of folds 6 leave nothing to learn from; set test_folds=5"):
        combinatorial(3270, 260, CombinatorialConfig(test_folds=6))


def test_folds_without_skfolio_say_how_to_install_it_and_importing_them_does_not_need_it():
    program = (
        "import sys; from data_pipeline import folds; assert 'skfolio' not in sys.modules\n"
        "sys.modules['skfolio'] = None\n"
        "folds.walk_forward(3270, 260, folds.FoldsConfig())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(
        "ConfigError: folds need the package skfolio: pip install 'swing-rl[train]'"
    )
