"""Verification: the equal error rate, its interval, and the trials behind it."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.cli.run import run_request
from speechssl.cli.words import read_words
from speechssl.data.manifest import load_manifest
from speechssl.errors import DataError
from speechssl.evaluation.trials import (
    MAX_UTTERANCES,
    Trials,
    advise_pattern,
    describe_dispute,
    describe_nesting,
    make_trials,
    read_trials,
    write_trials,
)
from speechssl.evaluation.verification import (
    ErrorCurve,
    bootstrap_trials,
    calibrate,
    compute_cllr,
    compute_dcf,
    compute_eer,
    compute_eer_interval,
    find_eer,
    find_min_dcf,
    normalise_scores,
    score_trials,
    thin_curve,
)
from tests.cases import each_case


def test_separable_scores_have_no_errors_and_reversed_ones_nothing_else() -> None:
    same = np.array([True, True, False, False])
    scores = np.array([0.9, 0.8, 0.2, 0.1])
    assert compute_eer(scores, same) == pytest.approx(0.0)
    assert compute_eer(-scores, same) == pytest.approx(100.0)


def test_one_of_four_on_either_side_is_25_percent() -> None:
    same = np.array([True] * 4 + [False] * 4)
    scores = np.array([0.9, 0.8, 0.7, 0.3, 0.6, 0.2, 0.1, 0.0])
    assert compute_eer(scores, same) == pytest.approx(25.0)


def test_equal_scores_are_interpolated() -> None:
    assert compute_eer(np.zeros(10), np.arange(10) < 3) == pytest.approx(50.0)
    # Misses 0 → 1/2 and alarms 2/3 → 1/3 between the two thresholds: they cross at 2/5.
    same = np.array([True, True, False, False, False])
    scores = np.array([1.0, 0.5, 0.7, 0.5, 0.2])
    assert compute_eer(scores, same) == pytest.approx(100 * 2 / 5)


def test_it_is_that_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(2.0, 1.0, 40_000), rng.normal(0.0, 1.0, 10_000)])
    # Φ(-1): the threshold stands half way between the two means.
    assert compute_eer(scores, np.arange(50_000) < 40_000) == pytest.approx(15.87, abs=0.6)


def test_a_weight_of_two_is_the_trial_twice() -> None:
    rng = np.random.default_rng(1)
    scores, same = rng.normal(size=60).round(1), rng.random(60) < 0.4
    weights = rng.integers(0, 3, 60)
    repeated = np.repeat(np.arange(60), weights)
    assert compute_eer(scores, same, weights.astype(float)) == pytest.approx(
        compute_eer(scores[repeated], same[repeated])
    )


def test_the_interval_is_seeded_and_over_speakers() -> None:
    rng = np.random.default_rng(2)
    speakers = [str(row // 5) for row in range(60)]
    trials = make_trials(speakers, None, 600, 1)
    scores = rng.normal(size=len(trials.first)) + 1.5 * trials.same
    interval = compute_eer_interval(scores, trials, speakers, 200, 1)
    assert interval == compute_eer_interval(scores, trials, speakers, 200, 1)
    assert (interval.unit, interval.count, interval.reliable) == ("speaker", 12, False)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < compute_eer(scores, trials.same) < interval.high
    assert interval.high - interval.low > 1.0


def test_speakers_in_no_trial_are_no_part_of_the_interval() -> None:
    rng = np.random.default_rng(2)
    few = [str(row // 5) for row in range(15)]
    trials = make_trials(few, None, 60, 1)
    scores = rng.normal(size=len(trials.first)) + 1.5 * trials.same
    interval = compute_eer_interval(scores, trials, few + [str(name) for name in range(100, 140)], 200, 1)
    assert (interval.count, interval.reliable) == (3, False)
    assert interval == compute_eer_interval(scores, trials, few, 200, 1)


def test_two_speakers_say_nothing_of_others() -> None:
    speakers = ["a", "a", "b", "b"]
    trials = Trials(np.array([0, 2, 0, 1]), np.array([1, 3, 2, 3]), np.array([True, True, False, False]))
    interval = compute_eer_interval(np.array([0.9, 0.1, 0.5, 0.2]), trials, speakers, 200, 1)
    assert (interval.low, interval.high, interval.count) == (None, None, 2)


def test_cosines_are_those_of_the_pairs() -> None:
    embeddings = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 0.0]], dtype=np.float32)
    pairs = Trials(np.array([0, 0, 1]), np.array([1, 2, 3]), np.array([True, False, False]))
    np.testing.assert_allclose(score_trials(embeddings, pairs), [1.0, 0.0, 0.0], atol=1e-6)


def test_trials_are_seeded_and_of_one_sex_where_it_is_known() -> None:
    speakers = [str(row // 4) for row in range(40)]
    sexes = ["FM"[int(speaker) % 2] for speaker in speakers]
    trials = make_trials(speakers, sexes, 100, 3)
    assert trials.same.sum() == 50
    assert (~trials.same).sum() == 50
    for one, other, same in zip(trials.first, trials.second, trials.same, strict=True):
        assert (speakers[one] == speakers[other]) == same
        assert sexes[one] == sexes[other]
    again, another = make_trials(speakers, sexes, 100, 3), make_trials(speakers, sexes, 100, 4)
    np.testing.assert_array_equal(trials.first, again.first)
    assert not np.array_equal(trials.first, another.first)
    pairs = set(zip(trials.first.tolist(), trials.second.tolist(), strict=True))
    assert len(pairs) == len(trials.first)


def test_a_large_test_set_does_not_make_all_its_pairs() -> None:
    speakers = [str(row % 50) for row in range(30_000)]
    trials = make_trials(speakers, None, 1000, 1)
    assert len(trials.first) == 1000
    assert trials.second.max() > MAX_UTTERANCES
    assert len(set(trials.first.tolist()) | set(trials.second.tolist())) <= MAX_UTTERANCES


@each_case("speakers", [["a", "a", "a"], ["a", "b", "c"]])
def test_trials_of_one_kind_are_refused(speakers: list[str]) -> None:
    with pytest.raises(DataError, match=r"`data\.test` must give trials of one speaker and of two"):
        make_trials(speakers, None, 10, 1)


def test_a_trials_file_names_utterances(tmp_path: Path) -> None:
    path = tmp_path / "trials.txt"
    path.write_text("1 a b\n0 a c\n")
    trials = read_trials(str(path), ["a", "b", "c"])
    assert (trials.first.tolist(), trials.second.tolist(), trials.same.tolist()) == ([0, 0], [1, 2], [True, False])


@each_case(
    "text, message",
    [
        ("1 a b\nyes a c\n", ":2 has 'yes a c'"),
        ("1 a b\n0 a\n", ":2 has '0 a'"),
        ("1 a b\n0 a z\n", ":2 has z"),
        ("1 a b\n", "only one kind"),
        ("a b target\n0 a c\n", ":2 has '0 a c'"),
        ("a b target\na c no\n", "`id id target` or `id id nontarget`"),
        ("a z target\na c nontarget\n", ":1 has z"),
        ("1 a b\n\n0 a c\n", ":2 has ''"),
        ("", "only one kind"),
        (None, "does not exist"),
    ],
)
def test_a_wrong_trials_file_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "trials.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=r"`data\.trials` must") as caught:
        read_trials(str(path), ["a", "b", "c"])
    assert message in str(caught.value)


def test_trials_are_text_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "trials.txt"
    path.write_bytes("1 caf\xe9 b\n0 a c\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"`data\.trials` must be text in UTF-8, but .*trials\.txt is not"):
        read_trials(str(path), ["a", "b", "c"])
    with pytest.raises(DataError, match=r"`data\.trials` must be a file of trials, but .* is a folder"):
        read_trials(str(tmp_path), ["a", "b", "c"])
    path.write_text("1 a b\n0 a c\n", encoding="utf-8-sig")
    assert read_trials(str(path), ["a", "b", "c"]).same.tolist() == [True, False]


def test_one_speaker_of_each_sex_gives_no_trials() -> None:
    speakers, sexes = ["a", "a", "b", "b"], ["F", "F", "M", "M"]
    with pytest.raises(DataError, match=r"two speakers of one sex, since trials are drawn within a sex"):
        make_trials(speakers, sexes, 10, 1)
    assert not make_trials(speakers, None, 10, 1).same.all()
    with pytest.raises(DataError, match="gives only one kind"):
        make_trials(["a", "a"], ["F", "F"], 10, 1)


VOX = [f"{s}/{v}/0000{k}" for s in ("id1", "id2") for v in ("x6", "8j") for k in (1, 2)]


@each_case("spelling", ["{}", "{}.wav", "{}.m4a", "./{}.wav", "vox/{}.wav", "/data/vox/{}.flac"])
def test_trials_name_files_by_the_end_of_their_path(tmp_path: Path, spelling: str) -> None:
    """As VoxCeleb's own lists do, whatever the ids are and into whatever format the files were converted."""
    path = tmp_path / "trials.txt"
    names = [spelling.format(VOX[k]) for k in (0, 3, 4)]
    path.write_text(f"1 {names[0]} {names[1]}\n0 {names[0]} {names[2]}\n")
    trials = read_trials(str(path), [f"u{k}" for k in range(8)], [f"/data/vox/{name}.flac" for name in VOX])
    assert (trials.first.tolist(), trials.second.tolist(), trials.same.tolist()) == ([0, 0], [3, 4], [True, False])


def test_an_id_goes_before_a_path_and_a_path_of_two_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.txt"
    path.write_text("1 a.wav b\n0 a.wav c\n")
    paths = ["/m/x/b.wav", "/m/y/b.wav", "/m/a.wav", "/m/c.flac"]
    trials = read_trials(str(path), ["a.wav", "b", "c", "d"], paths)
    assert trials.first.tolist() == [0, 0]
    path.write_text("1 b.wav c\n0 b.wav d\n")
    with pytest.raises(DataError, match=r"must name one utterance .*:1 has b\.wav, which may be a\.wav or b$"):
        read_trials(str(path), ["a.wav", "b", "c", "d"], paths)
    path.write_text("1 x/b.wav c\n0 y/b.wav d\n")
    assert read_trials(str(path), ["a.wav", "b", "c", "d"], paths).first.tolist() == [0, 1]


def test_trials_of_what_is_left_out_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trials.txt"
    path.write_text("1 a b\n0 a c\n1 a d\n")
    assert len(read_trials(str(path), ["a", "b", "c", "d"], unusable=[3]).same) == 2
    assert "1 of 3 trials name an utterance that is left out" in caplog.text


def test_a_folder_of_a_video_that_became_the_speaker_is_told() -> None:
    paths = [f"/data/vox/{name}.wav" for name in VOX]
    trials = Trials(np.array([0, 0, 1]), np.array([3, 4, 0]), np.array([True, False, True]))
    speakers, videos = ([path.split("/")[part] for path in paths] for part in (-3, -2))
    assert describe_dispute(trials, VOX, speakers, paths) == ""
    told = describe_dispute(trials, VOX, videos, paths)
    assert told.startswith("2 of 3 trials contradict the speakers of data.test: id1/x6/00001 and id1/8j/00002 are one")
    assert "of x6 and 8j there" in told
    assert told.endswith(
        "prepare with \"speaker_pattern='([^/]+)/[^/]+/[^/]+$'\" makes the folder such as id1 the speaker"
    )
    # Nothing in the paths agrees with these.
    odd = Trials(np.array([0, 0]), np.array([1, 4]), np.array([False, True]))
    assert "prepare" not in describe_dispute(odd, VOX, videos, paths)


def test_without_trials_folders_in_folders_are_told() -> None:
    paths = [f"/data/vox/{name}.wav" for name in VOX]
    told = describe_nesting([path.split("/")[-2] for path in paths], paths)
    assert "4 in 2 outer folders" in told
    assert "such as id1 the speaker" in told
    assert describe_nesting([path.split("/")[-3] for path in paths], paths) == ""
    flat = [f"/data/{speaker}/{k}.wav" for speaker in "ab" for k in range(2)]
    assert describe_nesting(["a", "a", "b", "b"], flat) == "", "speakers in one folder"


def test_the_advice_does_what_it_says_when_it_is_typed(tmp_path: Path) -> None:
    for name in VOX:
        (tmp_path / f"vox/{name}.wav").parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / f"vox/{name}.wav", np.zeros(800), 16_000)
    word = shlex.split(advise_pattern("id1", 2).split("prepare with ")[1].split(" makes ")[0])[0]
    (request,) = read_words("prepare", [str(tmp_path / "vox"), "corpus=folder", f"out={tmp_path / 'm'}", word])
    run_request(request)
    assert load_manifest(tmp_path / "m" / "all.tsv").column("speaker") == ["id1"] * 4 + ["id2"] * 4


def test_trials_are_read_as_kaldi_spells_them(tmp_path: Path) -> None:
    path = tmp_path / "trials"
    path.write_text("1 b target\n1 c nontarget\n")
    trials = read_trials(str(path), ["1", "b", "c"])
    assert (trials.first.tolist(), trials.second.tolist(), trials.same.tolist()) == ([0, 0], [1, 2], [True, False])


def test_trials_that_are_written_are_read_again(tmp_path: Path) -> None:
    speakers, ids = [str(row // 3) for row in range(12)], [f"u{row}" for row in range(12)]
    trials = make_trials(speakers, None, 20, 1)
    write_trials(tmp_path / "trials.txt", trials, ids)
    again = read_trials(str(tmp_path / "trials.txt"), ids)
    for name in ("first", "second", "same"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trials, name))
    write_trials(tmp_path / "scores.txt", trials, ids, np.arange(len(trials.same)) / 4)
    assert (tmp_path / "scores.txt").read_text().splitlines()[1].split()[2] == "0.25"


def draw_scores(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    same = rng.random(count) < 0.3
    return (rng.normal(size=count) + 1.5 * same).round(1), same


@each_case(
    "p_target, c_miss, c_fa", [(0.01, 1.0, 1.0), (0.05, 1.0, 1.0), (0.5, 1.0, 1.0), (0.01, 10.0, 1.0), (0.9, 1, 2)]
)
def test_min_dcf_is_the_lowest_cost_of_every_threshold_that_is_tried(
    p_target: float, c_miss: float, c_fa: float
) -> None:
    scores, same = draw_scores()
    costs = []
    for threshold in [*np.unique(scores), np.inf]:
        accepted = scores >= threshold
        miss, alarm = np.mean(~accepted[same]), np.mean(accepted[~same])
        costs.append(c_miss * p_target * miss + c_fa * (1 - p_target) * alarm)
    expected = min(costs) / min(c_miss * p_target, c_fa * (1 - p_target))
    rates = ErrorCurve(scores, same).compute_rates()
    assert find_min_dcf(*rates, p_target, c_miss, c_fa) == pytest.approx(expected)
    assert find_min_dcf(*rates, p_target, c_miss, c_fa) <= 1.0


def test_min_dcf_counted_by_hand() -> None:
    # Rejecting the two others costs one of four targets: 0.01 * 1/4, over 0.01.
    same = np.array([True, True, True, True, False, False])
    rates = ErrorCurve(np.array([9.0, 8.0, 7.0, 1.0, 2.0, 0.0]), same).compute_rates()
    assert find_min_dcf(*rates, p_target=0.01) == pytest.approx(0.25)


def test_one_threshold_costs_as_much_as_the_lowest_at_the_best_and_more_elsewhere() -> None:
    scores, same = draw_scores(20_000)
    # Of two normal distributions of deviation 1 with means 0 and 1.5 this is the log likelihood ratio.
    ratios = 1.5 * scores - 1.5**2 / 2
    lowest = find_min_dcf(*ErrorCurve(ratios, same).compute_rates(), 0.05)
    assert lowest <= compute_dcf(ratios, same, 0.05) < lowest + 0.03
    assert compute_dcf(ratios + 3, same, 0.05) > lowest + 0.3


def test_calibration_finds_the_log_likelihood_ratio_of_two_normal_distributions() -> None:
    scores, same = draw_scores(40_000)
    scale, offset = calibrate(scores, same)
    assert scale == pytest.approx(1.5, abs=0.05)
    assert offset == pytest.approx(-(1.5**2) / 2, abs=0.05)
    assert compute_cllr(scale * scores + offset, same) < compute_cllr(scores, same)
    assert compute_cllr(np.zeros(len(same)), same) == pytest.approx(1.0)
    assert np.isfinite(calibrate(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True]))).all()


def test_scores_are_normalised_by_the_nearest_of_a_cohort() -> None:
    trials = Trials(np.array([0, 1]), np.array([1, 2]), np.array([True, False]))
    cohort = np.array([[0.0, 1.0, 3.0, -9.0], [2.0, 2.0, 4.0, 0.0], [5.0, 1.0, 1.0, 1.0]])
    found = normalise_scores(np.array([4.0, 2.0]), trials, cohort, 2)
    # The nearest two of row 0 are 1 and 3 (mean 2, deviation 1), of row 1: 2 and 4 (3, 1), of row 2: 1 and 5 (3, 2).
    np.testing.assert_allclose(found, [((4 - 2) / 1 + (4 - 3) / 1) / 2, ((2 - 3) / 1 + (2 - 3) / 2) / 2])
    every = normalise_scores(np.array([4.0, 2.0]), trials, cohort, 300)
    sides = [(cohort[k].mean(), cohort[k].std()) for k in range(3)]
    expected = [np.mean([(s - sides[k][0]) / sides[k][1] for k in pair]) for s, pair in ((4.0, (0, 1)), (2.0, (1, 2)))]
    np.testing.assert_allclose(every, expected)


def test_a_shift_and_a_scale_of_all_scores_leave_no_trace_in_normalised_ones() -> None:
    rng = np.random.default_rng(5)
    trials = make_trials([str(row // 4) for row in range(20)], None, 60, 1)
    scores, cohort = rng.normal(size=len(trials.same)), rng.normal(size=(20, 30))
    np.testing.assert_allclose(
        normalise_scores(3 * scores + 7, trials, 3 * cohort + 7, 10), normalise_scores(scores, trials, cohort, 10)
    )


def test_a_thinned_curve_keeps_its_shape() -> None:
    scores, same = draw_scores(20_000)
    scores = scores + np.random.default_rng(0).normal(size=len(scores)) * 1e-3
    misses, alarms = thin_curve(*ErrorCurve(scores, same).compute_rates())
    assert 100 < len(misses) == len(alarms) <= 200
    assert find_eer(np.array(misses) / 100, np.array(alarms) / 100) == pytest.approx(compute_eer(scores, same), abs=0.5)
    assert thin_curve(*ErrorCurve(np.array([0.0, 1.0]), np.array([False, True])).compute_rates()) == ([], [])


def test_several_systems_have_the_interval_of_their_mean() -> None:
    speakers = [str(row // 5) for row in range(125)]
    trials = make_trials(speakers, None, 600, 1)
    rng = np.random.default_rng(6)
    curves = [ErrorCurve(rng.normal(size=len(trials.same)) + 2 * trials.same, trials.same) for _ in range(5)]
    one, cost = bootstrap_trials(
        curves[:1], trials, speakers, [find_eer, lambda misses, alarms: find_min_dcf(misses, alarms, 0.05)], 100, 1
    )
    (five,) = bootstrap_trials(curves, trials, speakers, [find_eer], 100, 1)
    assert one.reliable and one.count == 25
    for interval in (one, cost, five):
        assert interval.low is not None and interval.high is not None and interval.low < interval.high
    assert (five.high or 0) - (five.low or 0) < (one.high or 0) - (one.low or 0)


@each_case("id, is_odd", [("a b", True), ("a\tb", True), (" a", True), ("a-b", False)])
def test_ids_that_a_trials_file_cannot_hold_are_told(
    tmp_path: Path, id: str, is_odd: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trials = Trials(np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    caplog.clear()
    write_trials(tmp_path / "trials.txt", trials, [id, "c", "d"])
    assert ("have spaces" in caplog.text) == is_odd
