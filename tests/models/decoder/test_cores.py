import threading

import pytest
import torch

from models.decoder.cores import run_on_cores


def test_results_come_in_order_and_runs_are_on_threads_of_one_torch_thread():
    before = torch.get_num_threads()

    def run(number):
        return number, torch.get_num_threads(), torch.is_inference_mode_enabled(), threading.get_ident()

    found = run_on_cores([lambda number=number: run(number) for number in range(5)], 2)
    assert [number for number, *_ in found] == list(range(5))
    assert all(threads == 1 and inference for _, threads, inference, _ in found)
    assert 1 <= len({thread for *_, thread in found}) <= 2
    assert threading.get_ident() not in {thread for *_, thread in found}
    assert torch.get_num_threads() == before, "the caller's products keep their threads"


def test_a_run_may_wait_for_those_before_it_whoever_else_calls():
    def calls(number):
        for _ in range(20):
            ready = threading.Event()
            assert run_on_cores([lambda ready=ready: ready.set() or 1, lambda ready=ready: ready.wait(10)], 2)[1]
        ended.append(number)

    ended = []
    threads = [threading.Thread(target=calls, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(ended) == [0, 1, 2]


def test_the_first_error_is_raised_when_all_have_ended():
    ended = []

    def fail(number):
        ended.append(number)
        raise ValueError(f"run {number}")

    with pytest.raises(ValueError, match="run 0"):
        run_on_cores([lambda number=number: fail(number) for number in range(3)], 2)
    assert sorted(ended) == [0, 1, 2]
    assert run_on_cores([lambda: 7], 2) == [7]
