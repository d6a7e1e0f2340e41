"""Values, blocks and text fragments for mutants of configs."""

from typing import Any

# Sizes that make a dry run of a recipe cheap.
SMALL: dict[str, int] = {
    "samples": 48,
    "steps": 2,
    "batch_size": 4,
    "width": 8,
    "res_blocks": 1,
    "depth": 1,
    "heads": 2,
    "levels": 2,
    "layers": 1,
    "groups": 2,
    "height": 8,
    "length": 32,
    "components": 6,
    "dim": 8,
    "codebook_size": 8,
    "codebook_dim": 4,
    "beam_size": 2,
    "warmup_steps": 1,
    "validate_every": 2,
    "checkpoint_every": 2,
    "num_tokens": 4,
}

# Values of every type, and values at the limits of numbers, for any key.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, 5, 8, -1, -(2**63), 2**31, 2**32, 2**63, 2**64, 10**30, 0.0, 0.5, 1.0, -0.5),
    *(1e-308, 1e308, -1e308, 1e-45, 1e38, 1e39, float("nan"), float("inf"), float("-inf"), 5e-324, 0.999999999999),
    *(65536, 1 << 24),
    *("", " ", "a", "auto", "none", "null", "1", "1e-3", "x" * 300, "y" * 100_000, "ä", "名前", "🎲", "\u202e", "a\nb"),
    *("\x1b[31mred\x1b[0m", "\x00", "\x07", "a\tb", "../..", "/", ".", "~", "/dev/zero", "/dev/null", "*", "[", "cpu"),
    *("cuda", "cuda:99", "mps", "2020-01-01", "12:30:45", "0x10", "!!python/object:os.system", "&a", "*a", "<<", "C"),
    *("CT", "HW", "CHW", "T", "TC", "HWC", "euclidean", "cosine", "bfloat16", "float32", "uint8", "cross_entropy"),
    *([], {}, [1], [2, 2], [0], [-1, 4], [[]], [[[[1]]]], [None], ["a"], [8, 5, 5, 5], [1 << 16] * 3),
    *([2] * 30, [2] * 400, "l1", {"kind": "vector"}),
    *({"kind": "nothing"}, {"kind": None}, {"kind": 3}, {"kind": ["a"]}, {"kind": {}}, {"a": 1}),
]  # fmt: skip

# Blocks that no recipe has, each with the key where it is put.
GRAFTS: list[tuple[str, dict[str, Any]]] = [
    ("quantizer", {"kind": "fsq", "levels": [4, 4]}),
    ("quantizer", {"kind": "lfq", "bits": 4}),
    ("quantizer", {"kind": "bsq", "bits": 3, "sample_entropy_weight": 0.5}),
    ("quantizer", {"kind": "product", "groups": 2, "quantizer": {"kind": "vector", "codebook_size": 4}}),
    (
        "quantizer",
        {"kind": "product", "groups": 2, "quantizer": {"kind": "residual", "levels": 2}},
    ),
    ("quantizer", {"kind": "residual", "levels": 2, "shared": True, "level_dropout": 0.5}),
    ("quantizer", {"kind": "residual", "levels": 2, "quantizer": {"kind": "fsq", "levels": [3, 3]}}),
    ("quantizer", {"kind": "vector", "codebook_size": 4, "assignment": {"kind": "sinkhorn", "iterations": 3}}),
    ("quantizer", {"kind": "vector", "codebook_size": 4, "metric": "cosine", "gradient_estimator": "rotation"}),
    ("quantizer", {"kind": "vector", "codebook_size": 4, "init": {"kind": "random"}, "dead_code_reset": None}),
    ("update", {"kind": "codebook_loss", "weight": 0.5}),
    ("update", {"kind": "entropy_only"}),
    ("update", {"kind": "simvq"}),
    ("encoder", {"kind": "identity"}),
    ("encoder", {"kind": "mlp", "width": 8, "layers": 1, "num_tokens": 2}),
    ("encoder", {"kind": "transformer", "num_tokens": 4, "patch_size": 2, "width": 8, "depth": 1, "heads": 2}),
    ("decoder", {"kind": "conv1d", "width": 8, "downsamples": 1, "res_blocks": 0}),
    ("decoder", {"kind": "mlp", "width": 8}),
    ("data", {"kind": "tensors", "path": "values.npy"}),
    ("data", {"kind": "tensors", "path": "classes.npy", "layout": "HW"}),
    ("data", {"kind": "tensors", "path": "several.npz", "key": "a", "validation": "values.npy"}),
    ("loss", {"reconstruction": "cosine", "entropy": 0.1}),
]

# Sizes and weights, by type: small, large, and so extreme that arithmetic overflows or underflows.
NUMBERS: dict[type, list[Any]] = {
    bool: [True, False],
    int: [
        1,
        2,
        3,
        4,
        6,
        16,
        24,
        256,
        1000,
        1024,
        4096,
        1 << 16,
        1 << 20,
        1 << 24,
        1 << 28,
        10**9,
        10**12,
        2**62,
        2**63,
    ],
    float: [0, 5e-324, 1e-300, 1e-45, 1e-30, 1e-8, 0.25, 0.5, 0.999999, 1, 2, 100, 1e8, 1e20, 1e38, 1e39, 1e154, 1e308],
    type(None): [None],
}


# Fragments of YAML, and of invalid YAML.
FRAGMENTS = [
    *(b"*a", b"&a ", b"!!python/object/apply:os.system [ls]", b"!!binary x", b"[" * 3000, b"{a: " * 3000, b"- " * 3000),
    *(b"\x00", b"\xff\xfe", b"\x1b[2J", b"\t", b"'", b'"', b"|", b">", b"---\n", b"...\n", b"? ", b": ", b"# "),
    *(b"%YAML 9.9\n", b"\r", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"<<: {a: 1}\n"),
    *(b"9" * 5000, b"1e999", b"0", b"a: &x [*x]\n", b"\xc2\x85"),
]  # fmt: skip
