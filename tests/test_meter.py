"""Memory and seconds are those of the work, and of a GPU what torch and the driver say."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest

from embench.measuring import meter
from embench.measuring.meter import device_memory, metered


def test_on_the_cpu_nothing_is_said_of_a_gpu():
    with metered("cpu") as reading:
        pass

    assert reading.gpu_peak_memory is None
    assert reading.gpu_reserved_memory is None
    assert reading.gpu_device_memory is None


def test_seconds_of_the_wall_and_of_the_cpu_are_told_apart():
    with metered("cpu") as asleep:
        time.sleep(0.1)
    with metered("cpu") as busy:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass

    assert asleep.seconds >= 0.1 > 0.05 > asleep.cpu_seconds
    assert busy.seconds >= busy.cpu_seconds - 1e-3 >= 0.098


def test_memory_is_the_growth_at_its_peak_also_of_what_is_gone():
    with metered("cpu") as reading:
        np.ones(2**22)

    # The kernel counts pages for each CPU and adds them up now and then.
    assert reading.peak_memory == pytest.approx(8 * 2**22, rel=0.05)


def test_memory_that_was_there_before_is_not_counted():
    held = np.ones(2**22)

    with metered("cpu") as reading:
        held += 1

    assert reading.peak_memory < 2**22


def test_a_peak_of_before_is_forgotten():
    np.ones(2**23)

    with metered("cpu") as reading:
        pass

    assert reading.peak_memory < 2**22


def test_where_the_kernel_does_not_tell_there_is_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "PROC", tmp_path)

    with metered("cpu") as reading:
        pass

    assert reading.peak_memory is None


def test_the_collector_stands_still_and_goes_on_also_after_an_error():
    seen = []

    with pytest.raises(ZeroDivisionError), metered("cpu"):
        seen.append(gc.isenabled()) or 1 / 0

    assert seen == [False]
    assert gc.isenabled()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that notes what it is asked, and has a number of its own for each."""
    asked = []

    def answers(name, value=None):
        def answer(*_):
            asked.append(name)
            return value

        monkeypatch.setattr(f"torch.cuda.{name}", answer)

    answers("synchronize")
    answers("reset_peak_memory_stats")
    answers("max_memory_allocated", 11)
    answers("max_memory_reserved", 22)
    answers("device_memory_used", 33)
    return asked


def test_the_three_numbers_of_a_gpu_come_from_the_right_calls(gpu):
    with metered("cuda") as reading:
        pass

    assert reading.gpu_peak_memory == 11
    assert reading.gpu_reserved_memory == 22
    assert reading.gpu_device_memory == 33


def test_the_gpu_has_finished_before_the_clock_starts_and_before_it_stops(gpu):
    with metered("cuda"):
        before = list(gpu)
        gpu.clear()

    assert before == ["synchronize", "reset_peak_memory_stats"]
    assert gpu[0] == "synchronize"
    assert set(gpu[1:]) == {"max_memory_allocated", "max_memory_reserved", "device_memory_used"}


def test_work_under_way_is_waited_for(gpu, monkeypatch):
    monkeypatch.setattr("torch.cuda.synchronize", lambda: time.sleep(0.05))

    with metered("cuda") as reading:
        pass

    assert reading.seconds >= 0.05


@pytest.mark.parametrize("error", [ModuleNotFoundError, RuntimeError, AssertionError])
def test_a_device_that_nobody_can_ask_says_nothing(monkeypatch, error):
    def refuse(*_):
        raise error("no nvidia-ml-py, no driver, or no CUDA in this torch")

    monkeypatch.setattr("torch.cuda.device_memory_used", refuse)

    assert device_memory() is None
