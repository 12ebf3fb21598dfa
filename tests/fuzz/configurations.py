"""Random configurations: options of the parser with values of right and wrong kinds, as arguments or as YAML."""

import inspect
import types
import typing
from pathlib import Path

import yaml

WRONG = (
    *(
        "",
        "abc",
        "null",
        "true",
        "false",
        "~",
        "-",
        "--",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "0x10",
        "1_000",
        "2020-01-01",
        "1e3",
    ),
    *(
        "0",
        "1",
        "-1",
        "2.5",
        "1000000000000",
        "9" * 40,
        "[]",
        "{}",
        "[1,2]",
        "[[1],[2]]",
        "{a: 1}",
        "[null]",
        "{1: 2}",
        "[",
        "{",
        "'",
    ),
    *(
        "&a [*a]",
        "!!python/name:os.system",
        "!!binary aGk=",
        "{class_path: Oracle}",
        "{class_path: os.system}",
        "{class_path: 3}",
    ),
    *(
        "{class_path: SupportSet, init_args: 3}",
        "{class_path: AllOf, init_args: {detectors: [{}]}}",
        "{init_args: {}}",
        "{class_path: }",
    ),
    *(
        "Oracle",
        "Digits",
        "SimCLR",
        "os.system",
        "nowhere.Mine",
        "falseneg",
        "falseneg.nothing",
        "falseneg.cli.main",
        "builtins.dict",
    ),
    *(
        "💥",
        "\ud800",
        "a" * 5000,
        "a\nb",
        "x.y.z",
        "..",
        "/",
        "/dev/null",
        "/dev/zero",
        "10%",
        "3 epochs",
        "5 steps",
        "-3 epochs",
        "0%",
        "9" * 30 + " epochs",
    ),
)
NUMBERS = (0, 1, 2, 3, 5, 8, 17, -1, -7, 10**6, 2**31, 2**63, 10**30)
REALS = (0.0, 1.0, 0.1, 0.5, 0.07, 1e-9, -0.5, 2.0, 1e9, 1e300, 5e-324, float("nan"), float("inf"), float("-inf"))
ODD = (
    None,
    True,
    False,
    "",
    "abc",
    [],
    {},
    [1, 2],
    [[1]],
    {"a": 1},
    [None],
    {1: 2},
    {"class_path": "Oracle"},
    b"bytes",
    {"class_path": 3},
)
PARTS = ("data", "test", "method", "detector", "objective", "temperature", "optimiser")


class Options:
    """What there is to choose from, read once from `Run` and the classes that its parts may be."""

    def __init__(self, folder):
        from falseneg.cli.explain import class_names
        from falseneg.data import Augmentation
        from falseneg.models import Encoder
        from falseneg.train.run import Run

        self.folder = Path(folder)
        self.kinds = typing.get_type_hints(Run)
        self.kinds.pop("test")
        self.classes = {part: [name for name in class_names(Run, part) if name != "Wrapped"] for part in PARTS}
        self.open = {"method.encoder": Encoder, "augmentation": Augmentation, "support_augmentation": Augmentation}

    def constructor(self, part, name):
        """The parameters of a class by their kinds."""
        import falseneg
        import falseneg.data
        import falseneg.train.optimisers

        for module in (falseneg, falseneg.data, falseneg.train.optimisers):
            if hasattr(module, name):
                return parameters(getattr(module, name))
        return {}


def parameters(kind):
    """The parameters of a constructor by their kinds."""
    try:
        hints = typing.get_type_hints(kind.__init__)
    except Exception:
        hints = {}
    names = [name for name in inspect.signature(kind).parameters if name not in ("self", "args", "kwargs")]
    return {name: hints.get(name, str) for name in names}


def value(random, kind):
    """A value of that kind or, one time in three, of any other."""
    if random.random() < 0.33:
        return random.choice(ODD)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kind = random.choice(typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return random.choice(typing.get_args(kind))
    if typing.get_origin(kind) in (list, tuple) or kind in (list, tuple):
        inner = [each for each in typing.get_args(kind) if each is not Ellipsis] or [float]
        return [value(random, random.choice(inner)) for _ in range(random.choice((0, 1, 2, 2, 2, 3, 5)))]
    if kind is int:
        return random.choice(NUMBERS)
    if kind is float:
        return random.choice((*REALS, *NUMBERS))
    if kind is bool:
        return random.random() < 0.5
    if kind is type(None):
        return None
    return random.choice(WRONG)


def arguments(random, options):
    """The arguments of one command."""
    style = random.random()
    command = random.choice(["pretrain"] * 8 + ["compare", "evaluate"])
    given = [command]
    if command == "evaluate":
        given.append(str(options.folder / random.choice(("run", "nowhere", "encoder.safetensors"))))
    settings = {"accelerator": "cpu", "workers": 0, "epochs": 1}
    if command != "evaluate":
        settings |= {
            "data": "Folder",
            "data.root": str(options.folder / "images"),
            "method.encoder.name": "test_resnet",
        }
    if command == "evaluate":
        settings.pop("epochs")
    chosen = {
        **settings,
        **{key: val for _ in range(random.choice((1, 1, 2, 3, 4))) for key, val in _option(random, options)},
    }
    out = (
        ["--out", str(options.folder / "out" / str(random.randrange(10**9)))]
        if command != "evaluate" or random.random() < 0.5
        else []
    )
    if command == "evaluate":
        out = out and [out[0], out[1] + ".json"]
    if style < 0.6:
        for key, val in chosen.items():
            text = (
                val
                if isinstance(val, str)
                else yaml.safe_dump(val, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
            )
            given += [f"--{key}={text}"] if random.random() < 0.5 else [f"--{key}", text]
    else:
        file = options.folder / "own.yaml"
        file.write_text(yaml.safe_dump(nested(chosen), allow_unicode=False), encoding="utf-8", errors="surrogatepass")
        given += ["--config", str(file)]
    if command == "compare" and random.random() < 0.7:
        given += [
            "--variants",
            random.choice(("[none,oracle]", "{none: , mine: {detector: Oracle}}", "[none]", *WRONG)),
        ]
    return given + out


def _option(random, options):
    """One option, with what it needs to be of a class."""
    kind = random.random()
    if kind < 0.45:
        name = random.choice(sorted(options.kinds))
        yield name, value(random, options.kinds[name]) if random.random() < 0.8 else random.choice(WRONG)
    elif kind < 0.85:
        part = random.choice(PARTS)
        name = random.choice(options.classes[part])
        yield part, name
        known = options.constructor(part, name)
        for parameter in random.sample(sorted(known), min(len(known), random.choice((1, 1, 2, 3)))):
            yield (
                f"{part}.{parameter}",
                value(random, known[parameter]) if random.random() < 0.8 else random.choice(WRONG),
            )
    else:
        part = random.choice(sorted(options.open))
        known = parameters(options.open[part])
        parameter = random.choice(sorted(known))
        yield f"{part}.{parameter}", value(random, known[parameter])


def nested(settings):
    """The settings as a YAML file holds them: classes with their arguments."""
    tree = {}
    for key, val in settings.items():
        part, _, name = key.partition(".")
        if not name:
            tree[part] = {"class_path": val} if part in PARTS and isinstance(val, str) else val
            continue
        if not isinstance(tree.get(part), dict):
            tree[part] = {"class_path": "SimCLR"} if part == "method" else {}
        holder = tree[part].setdefault("init_args", {}) if part in PARTS else tree[part]
        first, _, rest = name.partition(".")
        if isinstance(holder, dict):
            if rest:
                inner = holder.setdefault(first, {})
                if isinstance(inner, dict):
                    inner[rest] = val
            else:
                holder[first] = val
    return tree
