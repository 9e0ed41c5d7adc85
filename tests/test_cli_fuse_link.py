"""`rmtllmf fuse --link`: checkpoints as a base station would receive and merge them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_fusion_adapters import normal, write_adapter

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.channel import Link, Repeat, SumRate, get_preset
from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files import outputs
from rmtllmf_jax.fusion.rules import Lata
from rmtllmf_jax.uplink import Adapter, Sparse
from rmtllmf_jax.uplink.keys import channel_key, noise_key

SHAPES = {
    "model.embed_tokens.weight": (30, 8),
    "model.layers.0.mlp.weight": (8, 12),
    "model.layers.1.mlp.weight": (8, 12),
    "model.norm.weight": (8,),
}
USERS = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models, as files."""
    folder, random = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    base = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    paths = []
    for user in range(USERS + 1):
        paths.append(folder / f"{user}.safetensors")
        noise = {name: 0.1 * user * random.normal(size=shape) for name, shape in SHAPES.items()}
        model = {name: (base[name] + noise[name]).astype(np.float32) for name in SHAPES}
        save_file(model, paths[-1])
    return paths


def fuse(models: list[Path], out: Path, **options: Any) -> dict[str, np.ndarray]:
    given = {"link": "sum_rate", "scale": "0.4", "seed": 7, "draw": 2, "c0": -3.0} | options
    Fuse(base=models[0], models=tuple(models[1:]), out=out, **given).run()
    return {
        key: value for path in out.glob("*.safetensors") for key, value in load_file(path).items()
    }


def received(models: list[Path], **how: Any) -> tuple[dict[str, Any], dict[str, Any], jax.Array]:
    """Return the base, and what of the task vectors arrives by the chain in memory; the MSE."""
    base, *others = (jax.tree.map(jnp.asarray, load_file(path)) for path in models)
    stacked = fusion.stack([jax.tree.map(jnp.subtract, other, base) for other in others])
    for poison in how.pop("poisons", ()):
        stacked = poison(stacked)
    root = jax.random.key(7)
    link = Link(get_preset("paper"), SumRate(), **how.pop("link", {}))
    mse = link.mse(channel_key(root, 2))[: len(others)]
    kappa = uplink.kappa_from_c0(stacked, -3.0)
    return base, uplink.deliver(stacked, mse, kappa, noise_key(root, 2), **how), mse


@pytest.mark.parametrize(
    ("options", "how", "method"),
    [
        ({}, {}, fusion.TaskArithmetic()),
        (
            {"protection": "repeat(times=3)+shrink", "method": "ties(density=0.5)"},
            {"link": {"air": Repeat(3)}, "estimators": (uplink.Shrink(),)},
            fusion.Ties(0.5),
        ),
        (
            {"protection": "sparse(share=0.3)+reliability", "method": "median"},
            {"transport": Sparse(0.3), "estimators": (uplink.Reliability(),)},
            fusion.Median(),
        ),
        (
            {"protection": "adapter(rank=2, targets=('mlp',))+shrink", "method": "ties"},
            {"transport": Adapter(2, ("mlp",)), "estimators": (uplink.Shrink(),)},
            fusion.Ties(),
        ),
        (
            {"link": "sum_rate+sign_flip(user=1)", "method": "lata"},
            {"poisons": (uplink.SignFlip(1),)},
            Lata(),
        ),
    ],
    ids=["task_arithmetic", "repeat+shrink", "sparse", "adapter", "lata"],
)
def test_the_file_is_what_the_chain_in_memory_gives(
    models: list[Path], tmp_path: Path, options: dict[str, Any], how: dict[str, Any], method: Any
):
    found = fuse(models, tmp_path / "out", **options)
    base, arrived, mse = received(models, **how)
    expected = fusion.add_to_base(base, method(arrived), 0.4)
    for name in SHAPES:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-6, err_msg=name)
    record = json.loads((tmp_path / "out/fusion.json").read_text())["uplink"]
    assert (record["seed"], record["draw"], record["attack"]) == (7, 2, "sum_rate")
    assert [user["mse"] for user in record["users"]] == pytest.approx(mse.tolist(), rel=1e-5)
    assert [user["model"] for user in record["users"]] == [path.name for path in models[1:]]


@pytest.mark.parametrize("carrier", ["gaussian", "coded(uses=6.0)"])
def test_users_of_lora_send_their_factors(tmp_path: Path, carrier: str):
    """Adapters as PEFT saves them, at their own rank, at the uses that this saves."""
    kinds = {"q_proj": (16, 16), "v_proj": (8, 16)}
    modules = {f"layers.{n}.self_attn.{k}": shape for n in (0, 1) for k, shape in kinds.items()}
    before = normal(0, {f"model.{k}.weight": v for k, v in modules.items()} | {"norm": (16,)})
    save_file(before, tmp_path / "base.safetensors")
    paths = [tmp_path / f"user-{user}" for user in range(USERS)]
    vectors = [
        write_adapter(path, 1 + user, {f"model.{k}": v for k, v in modules.items()})
        for user, path in enumerate(paths)
    ]
    protection = f"repeat(times=3)+adapter(rank=2, carrier={carrier})"
    out = tmp_path / "out"
    found = fuse([tmp_path / "base.safetensors", *paths], out, protection=protection)
    stacked = {k: jnp.stack([jnp.asarray(v[k], jnp.float32) for v in vectors]) for k in vectors[0]}
    root, link = jax.random.key(7), Link(get_preset("paper"), SumRate(), air=Repeat(3))
    mse, transport = link.mse(channel_key(root, 2))[:USERS], uplink.get_transport(protection[16:])
    kappa = uplink.kappa_from_c0(stacked, -3.0)
    arrived = uplink.deliver(stacked, mse, kappa, noise_key(root, 2), transport)
    for name, leaf in arrived.items():
        assert np.linalg.matrix_rank(np.asarray(leaf[0]), tol=1e-4) == 2
        expected, atol = before[name] + 0.4 * leaf.sum(axis=0), 1e-6 * np.abs(leaf).max()
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=atol, err_msg=name)
    np.testing.assert_array_equal(found["norm"], before["norm"])
    users = json.loads((out / "fusion.json").read_text())["uplink"]["users"]
    sizes = [(2 * (sum(shape)), shape[0] * shape[1]) for shape in kinds.values()]
    share = sum(sent for sent, _ in sizes) / sum(whole for _, whole in sizes)
    uses = 3 * share * (1 if carrier == "gaussian" else 6)
    assert [user["uses"] for user in users] == pytest.approx([uses] * USERS)
    assert [user["mse"] for user in users] == pytest.approx(mse.tolist(), rel=1e-5)


def test_the_card_says_link_and_users(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fuse(models, tmp_path / "out", protection="repeat(times=2)+qam(size=16)")
    card = (tmp_path / "out/README.md").read_text()
    for line in ("## Uplink", "| attack | `sum_rate` |", "| transport | `qam(size=16)` |"):
        assert line in card
    assert "| model | mse | uses |" in card
    assert "| draw | `2` |" in card
    assert "uplink of 1.safetensors: mse 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", [{"draw": 3}, {"seed": 8}, {"protection": "shrink"}, {"c0": -4.0}, {"link": "ideal"}]
)
def test_what_arrives_depends_on_every_option_and_nothing_of_before_is_kept(
    models: list[Path],
    tmp_path: Path,
    change: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def interrupted(**options: Any) -> None:
        """Stop after the first shard."""
        with monkeypatch.context() as patch:
            seen: list[str] = []

            def stored(tensor: np.ndarray, dtype: str, key: str) -> np.ndarray:
                if seen:
                    raise KeyboardInterrupt
                seen.append(key)
                return tensor

            patch.setattr(outputs, "stored", stored)
            with pytest.raises(KeyboardInterrupt):
                fuse(models, tmp_path / "out", shard_size="300B", **options)

    whole = fuse(models, tmp_path / "whole", shard_size="300B")
    interrupted()
    resumed = fuse(models, tmp_path / "out", shard_size="300B")
    assert "1 of 4 shards are finished already." in capsys.readouterr().out
    for name in SHAPES:
        np.testing.assert_array_equal(resumed[name], whole[name])
    for path in (tmp_path / "whole").iterdir():
        other = (tmp_path / "out" / path.name).read_bytes()
        assert other.replace(b"# out", b"# whole") == path.read_bytes(), path.name
    shutil.rmtree(tmp_path / "out")
    interrupted()
    other = fuse(models, tmp_path / "out", shard_size="300B", **change)
    assert "starting again" in capsys.readouterr().out
    assert all((other[name] != whole[name]).any() for name in SHAPES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"link": "sum_rat"}, r"unknown scenario 'sum_rat'\. Did you mean 'sum_rate'"),
        ({"link": "clean"}, r"--link clean: clean has no channel: use ideal"),
        ({"link": None}, r"--c0 needs a link: give --link"),
        ({"link": None, "c0": -31.0, "draw": 1}, r"--draw needs a link"),
        (
            {"link": None, "c0": -31.0, "draw": 0, "protection": "shrink"},
            r"--protection needs a link",
        ),
        ({"protection": "realign"}, r"realign needs samples and a running model"),
        ({"protection": "r-mtllmf"}, r"reload: on files, .* --from-base"),
        ({"protection": "shrnk"}, r"unknown protection 'shrnk'\. Did you mean 'shrink'"),
        ({"protection": "shrink(per=user)"}, r"shrink\(per=user\) needs all leaves"),
        (
            {"protection": "adapter(rank=2)"},
            r"the target 'q_proj\|query' of adapter.* none of 3 mat",
        ),
        ({"protection": "adapter(rank=9, targets=('mlp',))"}, r"mlp.weight is a matrix of 8 x 12"),
        ({"protection": "qam+shrink"}, r"shrink needs errors of known variance, and qam sends"),
        (
            {"link": "ideal", "preset": "mse=.1,.2"},
            r"3 models need as many users, and direct_preset.* has 2",
        ),
        ({"preset": "papr"}, r"unknown channel preset 'papr'"),
        ({"c0": -500.0}, r"c0 in dB must be"),
        ({"kappa": -1.0}, r"kappa must be"),
        ({"draw": -1}, r"draw must be"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    models: list[Path], tmp_path: Path, options: dict[str, Any], message: str
):
    if options.get("link", "") is None:
        options = {"seed": 0, "draw": 0} | options
    with pytest.raises(InputError, match=message):
        fuse(models, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_the_models_come_over(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fuse(models, tmp_path / "out", dry_run=True, protection="shrink")
    line = "over an uplink: preset paper, attack sum_rate, receiver sic, air once, "
    assert line in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_command_line_has_it(models: list[Path], tmp_path: Path):
    words = ["fuse", "--base", models[0], "--models", models[1], "--out", tmp_path / "out"]
    words += ["--link", "ideal", "--c0", -20, "--draw", 1, "--protection", "repeat(times=2)"]
    run = "from rmtllmf_jax.cli.main import main; main()"
    program = [sys.executable, "-c", run, *map(str, words)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/fusion.json").read_text())["uplink"]["c0_db"] == -20.0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
@pytest.mark.slow
def test_memory_is_that_of_a_few_tensors(tmp_path: Path):
    from test_fusion_files_crashes import MEMORY

    script = MEMORY.replace("method=method)", "method=method, link='sum_rate', scale='0.1')")
    assert script != MEMORY
    words = [sys.executable, "-c", script, str(tmp_path), "task_arithmetic", "10"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after, tensor = json.loads(done.stdout.splitlines()[-1])
    users, more = 2, 6  # base, merged, and what drawing a tensor of noise takes
    assert after - before < (users + more) * tensor + 25_000_000, (after - before) / tensor
    shutil.rmtree(tmp_path)
