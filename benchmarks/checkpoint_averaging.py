r"""`swa_tf.average_checkpoints`, measured against reading and writing.

    python -m benchmarks.checkpoint_averaging --forms=keras --n_variables=400

prints a table for each form of file: time and peak memory of the average, of a
naive one (a dictionary of whole arrays, as other averagers keep it), and of two
floors, which read the inputs, write one output, and do nothing else. The disk
must have room for 9 GB of checkpoints, unless flags say otherwise.
"""

import functools
import glob
import io
import os
import statistics
import sys
import tempfile
import time
import zipfile

import h5py
import numpy as np
from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Column, Table

from benchmarks import timing

# TensorFlow is imported only in the processes that are measured.

FORMS = {"checkpoint": "", "weights.h5": ".weights.h5", "keras": ".keras"}
_VALUE, _MEMBER = "/.ATTRIBUTES/VARIABLE_VALUE", "model.weights.h5"
_HEADINGS = ["time, s", "lowest to highest", "/ plain", "/ library"]
_HEADINGS += ["peak, MB", "less imports, MB", "in checkpoints"]
_NOTE = """\
Medians of runs that take turns, each in a fresh process, with the inputs in the
page cache. "/ plain" and "/ library": the time divided by that of the floor.
Memory: the peak of the process; the same less the peak after the imports; that
divided by the size of a checkpoint. Wanted of `average_checkpoints`: at most
1.5 times the time of reading and writing, and 2.5 checkpoints of memory.
"""

flags.DEFINE_integer("n_checkpoints", 20, "To average.", lower_bound=1)
flags.DEFINE_integer("n_parameters", 10**8, "Of float32, in each of them.", 1)
flags.DEFINE_integer("n_variables", 4, "That these are in, all alike.", 1)
flags.DEFINE_list("forms", list(FORMS), f"Of files: {', '.join(FORMS)}.")
flags.DEFINE_integer("rounds", 3, "Runs of each way.", lower_bound=1)
flags.DEFINE_string("folder", None, "For the files; default: a temporary one.")
flags.DEFINE_string("output", None, "A Markdown file to write the tables to.")
flags.register_validator(
    "forms",
    lambda forms: forms and set(forms) <= FORMS.keys(),
    f"It must be some of {', '.join(FORMS)}.",
)
flags.register_multi_flags_validator(
    ["n_parameters", "n_variables"],
    lambda values: values["n_parameters"] % values["n_variables"] == 0,
    "--n_parameters must be a multiple of --n_variables.",
)
flags.register_validator(
    "folder",
    lambda folder: folder is None or os.path.isdir(folder),
    "It must be a directory that exists.",
)
flags.register_validator(
    "output",
    lambda file: file is None or os.path.isdir(os.path.dirname(file) or "."),
    "It must be a file in a directory that exists.",
)


def main(argv):
    """Runs the benchmark that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"There are flags only. Received: {argv[1]}")
    values, buffer = flags.FLAGS.flag_values_dict(), io.StringIO()
    for form in values["forms"]:
        columns = [Column(heading, justify="right") for heading in _HEADINGS]
        table = Table("", *columns, box=box.MARKDOWN)
        for row in _rows(form, values):
            table.add_row(*row)
        buffer.write(
            f"## {form}: {values['n_checkpoints']} of "
            f"{values['n_parameters']:,} float32 in "
            f"{values['n_variables']} variables\n"
        )
        Console(file=buffer, width=140).print(table)
    buffer.write(_NOTE)
    text = "\n".join(map(str.rstrip, buffer.getvalue().split("\n")))
    print(text)
    if values["output"]:
        command = " ".join(["benchmarks.checkpoint_averaging", *sys.argv[1:]])
        with open(values["output"], "w", encoding="utf-8") as file:
            file.write(
                f"# Averages of checkpoints: time and memory\n\n{text}\n"
                f"Made by\n\n    python -m {command}\n\n"
                f"with {timing.alone(_stack)}, on {os.cpu_count()} cores.\n"
            )


def _stack():
    from benchmarks import report

    return ", ".join(f"{k} {v}" for k, v in report.stack().items())


def _rows(form, values):
    """The figures of one form: a row for each way."""
    ways, n_bytes = list(WAYS), 4 * values["n_parameters"]
    with tempfile.TemporaryDirectory(dir=values["folder"]) as folder:
        names = [f"{i:06}{FORMS[form]}" for i in range(values["n_checkpoints"])]
        paths = [os.path.join(folder, name) for name in names]
        shape = values["n_variables"], n_bytes // 4 // values["n_variables"]
        means = timing.alone(prepare, form, paths, shape)
        runs = timing.in_turns(
            {w: functools.partial(_run, w, form, paths, means) for w in ways},
            values["rounds"],
        )
    medians = {w: [*map(statistics.median, zip(*runs[w]))] for w in ways}
    for way, (seconds, before, peak) in medians.items():
        times = [run[0] for run in runs[way]]
        yield [
            way,
            f"{seconds:.2f}",
            f"{min(times):.2f} to {max(times):.2f}",
            *(f"{seconds / medians[floor][0]:.2f}" for floor in ways[:2]),
            f"{peak / 1e6:.0f}",
            f"{(peak - before) / 1e6:.0f}",
            f"{(peak - before) / n_bytes:.2f}",
        ]


def _run(way, form, paths, means):
    os.sync()  # What the last one wrote is not this one's to pay.
    return timing.alone(measure, way, form, paths, means)


def prepare(form, paths, shape):
    """Writes checkpoints, and reads them: so they are in the page cache.

    Returns:
        The float64 means of a sample of each weight, by its name in the files.
    """
    import tensorflow as tf

    random, means = np.random.default_rng(0), {}
    inputs = tf.keras.Input([1])
    kwargs = {"use_bias": False, "kernel_initializer": "zeros"}
    layers = [
        tf.keras.layers.Dense(shape[1], **kwargs) for _ in range(shape[0])
    ]
    model = tf.keras.Model(inputs, [layer(inputs) for layer in layers])
    for path in paths:
        for layer in layers:
            layer.kernel.assign(random.standard_normal((1, shape[1]), "f"))
        if form == "keras":
            model.save(path)
        elif form == "weights.h5":
            model.save_weights(path)
        else:
            arrays = enumerate(model.get_weights())
            _write(form, path, {f"w{i}{_VALUE}": array for i, array in arrays})
        for name, weight in _read(form, path):
            means[name] = means.get(name, 0.0) + _sample(weight) / len(paths)
    return means


def measure(way, form, paths, means):
    """Seconds, and the peak of memory in bytes before and after."""
    import tensorflow  # noqa: F401

    import swa_tf  # noqa: F401

    with tempfile.TemporaryDirectory(dir=os.path.dirname(paths[0])) as folder:
        output = os.path.join(folder, f"average{FORMS[form]}")
        before, start = timing.peak_memory(), time.perf_counter()
        WAYS[way](form, paths, output)
        seconds, peak = time.perf_counter() - start, timing.peak_memory()
        if "average" in way:
            check(form, output, means)
    return seconds, before, peak


def check(form, path, means):
    """Raises unless the weights in a file are the means, rounded."""
    found = {name: _sample(weight) for name, weight in _read(form, path)}
    if found.keys() != means.keys() or not all(
        np.allclose(found[name], means[name], 2**-23, 1e-12) for name in means
    ):
        raise RuntimeError(f"{path} does not hold the means")


def _sample(weight):
    return weight.ravel()[::997].astype(np.float64)


def _plain_floor(form, paths, output):
    buffer = memoryview(bytearray(1 << 20))
    for path in paths:
        size = 0
        for name in glob.glob(f"{path}*"):
            with open(name, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    size += count
    with open(output, "wb", buffering=0) as file:
        for start in range(0, size, len(buffer)):
            file.write(buffer[: size - start])


def _library_floor(form, paths, output):
    weights = {}
    for path in paths:
        for name, weight in _read(form, path):
            weights[name] = weight
    _write(form, output, weights)


def _average(form, paths, output):
    import swa_tf

    swa_tf.average_checkpoints(paths, output)


def _average_naively(form, paths, output):
    total = {}
    for path in paths:
        for name, weight in _read(form, path):
            if name not in total:
                total[name] = np.zeros(weight.shape)
            total[name] += weight
    n = len(paths)
    _write(form, output, {k: (v / n).astype("f") for k, v in total.items()})


def _read(form, path):
    """Names and values, one at a time, as TensorFlow and h5py read them."""
    if form == "checkpoint":
        import tensorflow as tf

        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            if name.endswith(_VALUE):
                yield name, reader.get_tensor(name)
    elif form == "keras":
        with zipfile.ZipFile(path) as archive, archive.open(_MEMBER) as member:
            yield from _read("weights.h5", member)
    else:
        names = []
        with h5py.File(path, "r") as file:
            file.visit(names.append)
            for name in names:
                if isinstance(file[name], h5py.Dataset):
                    yield name, file[name][()]


def _write(form, path, weights):
    """Writes what `_read` gave, and of a `.keras` file nothing else."""
    if form == "checkpoint":
        import tensorflow as tf

        tensors = {
            k[: -len(_VALUE)]: tf.Variable(v) for k, v in weights.items()
        }
        tf.train.Checkpoint(**tensors).write(path)
        return
    hdf5 = path if form == "weights.h5" else f"{path}.h5"
    with h5py.File(hdf5, "w") as file:
        for name, weight in weights.items():
            file[name] = weight
    if form == "keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(hdf5, _MEMBER)


WAYS = {
    "floor: plain": _plain_floor,
    "floor: library": _library_floor,
    "average_checkpoints": _average,
    "naive average": _average_naively,
}


if __name__ == "__main__":
    app.run(main)
