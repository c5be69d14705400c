"""The guides: their snippets run, the pages of presets agree with the presets, and the notebooks with their code.

Trainings are shortened; where a snippet shows a formula, it is compared with one written down here.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_softac import SoftAC, SoftQL, presets
from sb3_softac.algorithm import SoftAlgorithm
from sb3_softac.export import ExportedPolicy
from tests.test_examples import script

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "benchmarks"))  # preset_pages imports a neighbour
preset_pages: Any = script("benchmarks/preset_pages.py")
sys.path.remove(str(ROOT / "benchmarks"))

NAMES = [*presets.PRESETS, *presets.SOFTQL_PRESETS]
GUIDES = [*sorted((DOCS / "recipes").glob("*.md")), DOCS / "extending.md"]
PAGES = [*GUIDES, DOCS / "choosing.md", *sorted((DOCS / "presets").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LEARN = SoftAlgorithm.learn
Names = dict[str, Any]


def blocks(page: Path, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def execute(code: str, where: str, names: Names | None = None) -> Names:
    """The names that the code defines."""
    names = {} if names is None else names
    exec(compile(code, where, "exec"), names)
    return names


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """In an empty folder, with at most 120 steps for each training, and updates after the last 20 only."""

    def learn(self: SoftAlgorithm, total_timesteps: int, *args: object, **kwargs: object) -> object:
        total_timesteps = min(total_timesteps, 120)
        self.learning_starts = total_timesteps - 20
        return LEARN(self, total_timesteps, *args, **kwargs)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(SoftAlgorithm, "learn", learn)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(name: str) -> list[Names]:
    """What each snippet of a page defines; they run in the order of the page, in one folder."""
    page = DOCS / f"{name}.md"
    return [execute(code, f"{name}, snippet {number}") for number, code in enumerate(blocks(page))]


class TestRecipes:
    def test_no_page_is_forgotten(self) -> None:
        tested = set(re.findall(r'run_page\("([\w/-]+)"\)', Path(__file__).read_text()))
        without_snippets = {"recipes/deployment-cpp", "recipes/browser"}
        assert tested | without_snippets == {page.relative_to(DOCS).with_suffix("").as_posix() for page in GUIDES}

    def test_goals(self, shortened: Path) -> None:
        (names,) = run_page("recipes/goals")
        assert len(names["successes"]) == 20
        env, buffer = names["Reach"](), names["model"].replay_buffer
        near = env.compute_reward(np.zeros((2, 2)), np.array([[0.1, 0.1], [0.2, 0.0]]), {})
        assert near.tolist() == [0.0, -1.0]
        batch = buffer.sample(64)
        distance = (batch.next_observations["achieved_goal"] - batch.next_observations["desired_goal"]).norm(dim=1)
        assert th.equal(batch.rewards.squeeze(1), th.where(distance < 0.2, 0.0, -1.0))

    def test_images(self, shortened: Path) -> None:
        (names,) = run_page("recipes/images")
        buffer = names["model"].replay_buffer
        assert buffer.observations.shape[-3:] == (4, 40, 40)
        assert not hasattr(buffer, "next_observations")  # each image once
        assert names["action"].shape == (1, 5)

    def test_dict_observations(self, shortened: Path) -> None:
        (names,) = run_page("recipes/dict-observations")
        assert names["action"].shape == (1, 2)
        assert names["model"].replay_buffer.observations["camera"].dtype == np.uint8

    def test_many_environments(self, shortened: Path) -> None:
        """120 transitions of 8 environments, updates from 100 on: after steps 13 (104 transitions), 14 and 15, four each."""
        (names,) = run_page("recipes/many-environments")
        model = names["model"]
        assert (model.num_timesteps, model._n_updates) == (120, 12)

    def test_normalisation(self, shortened: Path) -> None:
        inside, around = run_page("recipes/normalisation")
        assert inside["action"].shape == (1, 1)
        raw = around["test_env"].unnormalize_obs(np.array([[0.3, -0.4, 1.0]], np.float32))
        expected, _ = around["model"].predict(around["test_env"].normalize_obs(raw), deterministic=True)
        np.testing.assert_allclose(ExportedPolicy(around["path"]).predict(raw)[0], expected, atol=1e-4)

    def test_stop_and_go_on(self, shortened: Path) -> None:
        """The first script again: it goes on from its newest checkpoint, at step 100, to the same weights."""
        first, second, third = run_page("recipes/stop-and-go-on")
        assert first["model"].num_timesteps == 120
        again = execute(blocks(DOCS / "recipes/stop-and-go-on.md")[0], "again")
        assert again["model"].num_timesteps == 120
        for name, value in first["model"].policy.state_dict().items():
            assert th.equal(again["model"].policy.state_dict()[name], value), name
        assert second["model"].num_timesteps == 220
        assert second["model"].replay_buffer.pos == 220
        assert third["model"].num_timesteps == 100

    def test_tuning(self, shortened: Path) -> None:
        (names,) = run_page("recipes/tuning")
        assert len(names["study"].trials) == 2
        assert set(names["study"].best_params) == {"learning_rate", "one_minus_gamma", "actor_q"}

    def test_deployment_in_python(self, shortened: Path) -> None:
        training, acting = run_page("recipes/deployment-python")
        expected, _ = training["model"].predict(acting["observation"], deterministic=True)
        np.testing.assert_allclose(acting["action"], expected, atol=1e-5)

    @pytest.mark.skipif("ONNXRUNTIME" not in os.environ or shutil.which("g++") is None, reason="needs ONNX Runtime's headers")
    def test_deployment_in_cpp(self, shortened: Path) -> None:
        model = SoftAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu")
        model.export("pendulum")
        page = DOCS / "recipes" / "deployment-cpp.md"
        Path("act.cpp").write_text(blocks(page, "cpp")[0])
        compiling = re.findall(r"^g\+\+ .*$", page.read_text(), flags=re.MULTILINE)[0]
        subprocess.run(compiling, shell=True, check=True)
        observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
        given = "\n".join(" ".join(f"{value:.9g}" for value in row) for row in observations)
        printed = subprocess.run(["./act", "pendulum.onnx"], input=given, capture_output=True, text=True, check=True).stdout
        expected, _ = model.predict(observations, deterministic=True)
        np.testing.assert_allclose(np.array(printed.split(), np.float32)[:, None], expected, atol=1e-5)


def test_extending(shortened: Path) -> None:
    fourier, images, head, update = run_page("extending")
    model = fourier["model"]
    assert [tuple(q.shape) for q in model.critic(th.zeros(5, 3), th.zeros(5, 1))] == [(5, 1)] * 2
    made = fourier["Fourier"](4, 3)
    features = th.randn(2, 7, 4)
    angles = features @ made.directions
    assert th.equal(made(features), th.cat([angles.sin(), angles.cos()], dim=-1))
    assert isinstance(images["model"].critic.features_extractor, images["SmallCNN"])

    outputs, target = th.randn(2, 6, 2), th.randn(6)
    normal: Any = th.distributions.Normal(outputs[..., 0], (0.5 * outputs[..., 1]).exp())
    negative = -normal.log_prob(target) - 0.5 * np.log(2.0 * np.pi)  # the constant is left out
    th.testing.assert_close(head["GaussianHead"]().loss(outputs, target), negative.mean(dim=1).sum())
    assert th.equal(head["GaussianHead"]().expected_value(outputs), outputs[..., 0])

    model = update["model"]
    observations, actions = th.randn(6, 3), th.rand(6, 1)
    with th.no_grad():
        one, two = (q.squeeze(1) for q in model.critic(observations, actions))
        found = model._make_update().target_reduction(model.critic, observations, actions, None)
    th.testing.assert_close(found, 0.75 * th.minimum(one, two) + 0.25 * th.maximum(one, two))


def configured(page: Path) -> dict[str, Any]:
    """The options in the table of a page, read as Python reads them."""
    found: dict[str, Any] = {}
    for name, inner, value in re.findall(r'^\| `(\w+)(?:\["(\w+)"\])?` \| `([^`]+)` \|', page.read_text(), flags=re.MULTILINE):
        if inner:
            found.setdefault(name, {})[inner] = ast.literal_eval(value)
        else:
            found[name] = ast.literal_eval(value)
    return found


class TestPresets:
    def test_each_has_a_page(self) -> None:
        assert {page.stem for page in (DOCS / "presets").glob("*.md")} == set(NAMES)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_page_lists_what_the_preset_sets(self, name: str) -> None:
        assert configured(DOCS / "presets" / f"{name}.md") == presets.get(name)

    def test_generated_parts_are_those_of_today(self) -> None:
        stale = [page.name for page in preset_pages.pages() if preset_pages.written(page) != page.read_text()]
        assert stale == [], "python benchmarks/preset_pages.py writes them"

    def test_returns_are_those_of_the_preset_as_it_is(self) -> None:
        """Rows with other settings have its name, and are not its returns."""
        own = dict(presets.TQC)
        assert preset_pages.has_settings_of("TQC", own | {"learning_starts": 5000})
        assert not preset_pages.has_settings_of("TQC", own | {"ent_coef_update": "dual"})
        assert not preset_pages.has_settings_of("TQC", own | {"precision": "bfloat16"})
        assert not preset_pages.has_settings_of("SoftAC", {"target_entropy": "auto_0.5"})

    def test_every_page_has_all_parts(self) -> None:
        for name in NAMES:
            text = (DOCS / "presets" / f"{name}.md").read_text()
            kinds = [kind for kind in re.findall(r"<!-- (\w+) -->", text) if kind != "end"]
            assert sorted(kinds) == sorted(preset_pages.BLOCKS)
            assert "**Source.**" in text

    def test_parameters_by_hand(self) -> None:
        """17 observations, 6 actions, two layers of 256 units, two critics."""
        trunk = 256 * 256 + 256
        actor = (17 * 256 + 256) + trunk + 2 * (256 * 6 + 6)
        critics = 2 * ((23 * 256 + 256) + trunk + (256 + 1))
        of = preset_pages.cost("sb3")
        assert (of["actor"], of["critics"], of["targets"], of["value"]) == (actor, critics, critics, 0)
        # both observations, action, reward, end and time-out: SB3 stores observations in the dtype of their space
        assert of["replay"] == 1e6 * (2 * 17 * 8 + 6 * 4 + 3 * 4)

    def test_operations_on_a_small_batch_are_proportional(self) -> None:
        model = preset_pages.make_model("tqc", compile=False)
        preset_pages.fill(model)
        assert preset_pages.gradient_step_flops(model) / 1e6 == pytest.approx(preset_pages.cost("tqc")["mflop"])

    @pytest.mark.parametrize("name", NAMES)
    def test_the_snippet_names_it(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(SoftAlgorithm, "learn", lambda model, *_, **__: model)
        (code,) = blocks(DOCS / "presets" / f"{name}.md")
        model = execute(code.replace("100_000", "10"), name)["model"]
        assert isinstance(model, SoftQL if name in presets.SOFTQL_PRESETS else SoftAC)
        given = presets.get(name, buffer_size=10)
        assert (model.batch_size, model.gamma, model.gradient_steps) == tuple(
            given[option] for option in ("batch_size", "gamma", "gradient_steps")
        )


def anchors(text: str) -> set[str]:
    """Those of the headings, as the site makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([\w./-]*)(?:#([\w-]+))?\)", page.read_text()):
        other = (page.parent / target).resolve() if target else page
        assert other.is_file(), target
        assert not anchor or anchor in anchors(other.read_text()), f"{target}#{anchor}"


def test_presets_that_are_recommended_exist() -> None:
    table = (DOCS / "choosing.md").read_text().split("|---|---|---|")[1].split("\n\n")[0]
    named = {name for row in table.strip().splitlines() for name in re.findall(r"`([a-z0-9_]+)`", row.split(" | ")[1])}
    assert named >= {"sb3", "simba_v2", "droq"}
    assert named <= set(NAMES)


#: what holds after a notebook has run, however short its trainings are
NOTEBOOK_CHECKS: dict[str, Callable[[Names], bool]] = {
    "first_agent": lambda names: names["same"] and len(names["angles"]) == 200,
    "comparing_alpha_updates": lambda names: all(run.alpha[-1] < 1.0 for run in names["runs"].values()),
    "multimodal_policies": lambda names: abs(names["density"].sum() * (names["grid"][1] - names["grid"][0]) - 1.0) < 1e-6,
    "export": lambda names: max(names["differences"]) < 1e-5,
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # TorchScript is deprecated, and an option of export
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks(path: Path, shortened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells run one after the other; they were run in this order, and without errors, when they were committed.

    Their outputs were made with nbclient: ``jupyter nbconvert --to notebook --execute --inplace examples/*.ipynb``.
    """
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "error" not in kinds
    assert "display_data" in kinds
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell["outputs"])
    names: Names = {}
    with plt.rc_context():
        for number, cell in enumerate(cells):
            execute("".join(cell["source"]), f"{path.stem}, cell {number}", names)
    assert NOTEBOOK_CHECKS[path.stem](names)


def test_no_notebook_is_forgotten() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(NOTEBOOK_CHECKS)
