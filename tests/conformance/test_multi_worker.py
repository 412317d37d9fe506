"""Workers on the loopback interface come out as one process does.

What they run is in `tests/distributed.py`. To start TensorFlow takes most of
the time, so one run of two workers does all of it. One of them is killed in the
middle, and both are started again from the last checkpoint.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from swa_tf.support import compat
from tests import distributed
from tests.conformance.test_distribution import check

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKERS = 2
SECONDS = 240  # before the test gives up; 20 are usual

pytestmark = [pytest.mark.slow, pytest.mark.each_stack]

keras_2 = pytest.mark.skipif(
    compat.KERAS_3, reason="`fit` of Keras 3 knows one process only"
)


def program(what, folder, log, **environment):
    """`tests.distributed`, which writes to `folder`, in a process."""
    with open(folder / log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.distributed", what, folder],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
        )


def workers(folder, attempt):
    """All workers of a cluster."""
    ports = distributed.free_ports(WORKERS)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return [
        program(
            "work" if compat.KERAS_3 else "fit",
            folder,
            f"log-{attempt}-{index}",
            TF_CONFIG=json.dumps(
                {"cluster": cluster, "task": {"type": "worker", "index": index}}
            ),
        )
        for index in range(WORKERS)
    ]


def finish(processes):
    """Waits for all, or for the first that fails; none is left running.

    Returns:
        The status of that one, or 0.
    """
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end:
            statuses = [process.poll() for process in processes]
            failed = [status for status in statuses if status]
            if failed or None not in statuses:
                return (failed or [0])[0]
            time.sleep(0.05)
        return None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(processes, folder, logs, status=0):
    if finish(processes) != status:
        texts = [log.read_text()[-4000:] for log in sorted(folder.glob(logs))]
        pytest.fail("\n".join(texts))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which two workers have left their results."""
    folder = tmp_path_factory.mktemp("workers")
    for attempt, status in enumerate([-signal.SIGKILL, 0]):
        run(workers(folder, attempt), folder, f"log-{attempt}-*", status)
    return folder


@pytest.fixture(scope="module")
def on_one():
    """The results without a strategy."""
    training = distributed.Training(tf.distribute.get_strategy())
    training.run()
    return training.results()


def load(file):
    with np.load(file) as arrays:
        return dict(arrays)


def results(folder, name):
    """Returns the results of each worker."""
    return [load(folder / f"{name}-{index}.npz") for index in range(WORKERS)]


def test_is_what_one_process_finds(folder, on_one):
    for found in results(folder, "results"):
        check(found, on_one)


def test_workers_agree_to_the_bit(folder):
    first, second = results(folder, "results")
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)


def test_the_second_run_went_on_from_the_checkpoint(folder):
    path = tf.train.latest_checkpoint(str(folder / "worker-0"))
    reader = tf.train.load_checkpoint(path)
    assert reader.get_tensor("epoch/.ATTRIBUTES/VARIABLE_VALUE") == 2
    assert results(folder, "results")[0]["n_models"][1] == distributed.EPOCHS


@keras_2
def test_fit_is_what_one_process_finds(folder):
    expected = distributed.fit(tf.distribute.get_strategy())
    for found in results(folder, "fit"):
        check(found, expected)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The folder with the results of a coordinator of parameter servers."""
    folder = tmp_path_factory.mktemp("servers")
    run([program("servers", folder, "log")], folder, "log")
    return folder


def test_coordinator_of_parameter_servers(servers, on_one):
    check(load(servers / "results-servers.npz"), on_one)


def test_an_average_is_on_the_server_of_its_variable(servers):
    found = load(servers / "servers.npz")
    devices = found["devices"].tolist()
    assert found["devices_of_averages"].tolist() == devices
    assert {device.split("/")[3] for device in devices} == {"task:0", "task:1"}


def test_averages_on_the_device_of_a_worker(servers):
    found = load(servers / "servers.npz")
    assert found["kept"].tolist() == [2.0, 3.0]
    device = "/job:worker/replica:0/task:1/device:CPU:0"
    assert found["kept_on"].tolist() == [device] * 2


def test_apply_in_a_scheduled_function_is_refused(servers):
    error = str(load(servers / "servers.npz")["error"])
    assert "`apply` must be called by the coordinator" in error
