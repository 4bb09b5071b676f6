"""The plan of windows for long audio."""

from __future__ import annotations

from speechssl.inference.windows import Window, plan_windows
from tests.cases import each_case

SIZES = [480_001, 480_319, 480_320, 640_000, 799_999, 800_000, 1_000_003, 3_600 * 16_000]


@each_case("num_samples", SIZES)
@each_case("receptive", [330, 400, 465])
def test_kept_frames_are_those_of_a_single_pass(num_samples: int, receptive: int) -> None:
    windows = plan_windows(num_samples, 480_000, receptive)
    frames = [w.start // 320 + k for w in windows for k in range(w.first, w.last)]
    assert frames == list(range((num_samples - receptive) // 320 + 1))
    assert all(w.start % 320 == 0 for w in windows)
    assert all(w.start + w.num_samples <= num_samples for w in windows)
    assert len({w.num_samples for w in windows}) == 1
    assert windows[0].num_samples <= 480_000


def test_windows_of_other_frames_are_on_their_grid() -> None:
    windows = plan_windows(1_000_003, 480_000, 400, 640)
    frames = [w.start // 640 + k for w in windows for k in range(w.first, w.last)]
    assert frames == list(range((1_000_003 - 400) // 640 + 1))
    assert all(w.start % 640 == 0 for w in windows)


def test_inner_frames_have_five_seconds_on_either_side() -> None:
    windows = plan_windows(3_600 * 16_000, 480_000)
    num_frames = (480_000 - 400) // 320 + 1
    assert all(w.first >= 249 for w in windows[1:])
    assert all(num_frames - w.last >= 249 for w in windows[:-1])


def test_short_audio_is_one_window() -> None:
    assert plan_windows(480_000, 480_000) == [Window(0, 480_000, 0, 1499)]
    assert plan_windows(400, 480_000) == [Window(0, 400, 0, 1)]
