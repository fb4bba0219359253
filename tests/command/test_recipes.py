"""recipe=...: the options with which a method runs on a data set."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.keep import archive
from noveltylab.command.hydra_versions import BASE
from noveltylab.command.recipes import (
    BELOW,
    EVERY,
    FOLDER,
    MEANINGS,
    config_names,
    merge,
    read_own_yaml,
    read_recipe,
    recipe_options,
    recipes_of,
)
from noveltylab.command.validate import check_arguments, flatten
from noveltylab.job import CONF
from noveltylab.methods.base import find_method
from noveltylab.options import check_options, flat_options, kind_of_option
from noveltylab.predict.load import load_detector
from noveltylab.report.collect import collect
from noveltylab.results.files import sha256_file
from noveltylab.results.older import in_options_of_today, place_of_today
from noveltylab.results.record import read_result
from noveltylab.run.rerun import rerun
from tests.conftest import TINY
from tests.formats import write_images

Config = dict[str, Any]


def yaml_of(path: Path) -> Config:
    return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]  # a mapping


def test_own_files_are_read_as_omegaconf_reads_them() -> None:
    """With a reader that is several times faster: the same values of the same types."""
    files = [*FOLDER.glob("*.yaml"), *CONF.parent.glob("experiments/*/*.yaml")]
    assert len(files) > 50
    for path in files:
        assert repr(read_own_yaml(path)) == repr(yaml_of(path)), path


METHODS, DATA = config_names(CONF / "method"), config_names(CONF / "data")
RECIPES = [(method, recipe) for method in METHODS for recipe in recipes_of(method)]
#: Every recipe that is written down, as <method>/<recipe>.
NAMES = [
    f"{path.stem}/{recipe}" for path in sorted(FOLDER.glob("*.yaml")) for recipe in yaml_of(path)
]
#: Options of a method that are no number where they are null.
NOTHING = {
    "features": {"weights", "input_size"},
    "geometric": {"fit_images"},
    "msad": {"weights", "input_size"},
    "nda": {"contrastive_from"},
    "oled": {"mm_turn"},
    "panda": {"weights", "input_size"},
    "patchcore": {"weights", "input_size"},
    "pyod": {"arguments"},
}


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(CONF), **BASE):
        config = compose("train", list(overrides))
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]  # a mapping at the top


@pytest.fixture(scope="module")
def plain() -> dict[str, Config]:
    """A whole configuration by data set, of a method whose recipe changes nothing."""
    return {data: composed("method=pca", f"data={data}") for data in DATA}


@pytest.fixture(scope="module")
def methods() -> dict[str, Config]:
    configs = {}
    for name in METHODS:
        config = OmegaConf.create(yaml_of(CONF / "method" / f"{name}.yaml"))
        configs[name] = OmegaConf.to_container(config, resolve=True)
    return configs  # type: ignore[return-value]  # mappings at the top


@pytest.mark.parametrize(("method", "recipe"), RECIPES)
def test_a_recipe_fits_every_data_set(
    method: str, recipe: str, plain: dict[str, Config], methods: dict[str, Config]
) -> None:
    for data in DATA:
        config = merge(
            {**plain[data], "method": methods[method]}, recipe_options(method, recipe, data)
        )
        options = check_options(OmegaConf.create(config))
        arguments = {
            key: value
            for key, value in options.method.items()
            if key not in ("name", "_target_", "primary")
        }
        check_arguments(find_method(options.method["_target_"]), arguments, "method")
        assert {key for key, value in arguments.items() if value is None} <= NOTHING.get(
            method, set()
        )
        assert options.method["name"] == (method if recipe == "default" else f"{method}_{recipe}")


@pytest.mark.parametrize(
    ("method", "recipe"), [pair for pair in RECIPES if read_recipe("/".join(pair))]
)
def test_hydra_takes_a_recipe_between_the_methods_file_and_the_command_line(
    method: str, recipe: str, plain: dict[str, Config], methods: dict[str, Config]
) -> None:
    config = composed(f"method={method}", "data=mnist", f"recipe={recipe}", "trainer.max_epochs=3")
    expected = merge(
        {**plain["mnist"], "method": methods[method]}, recipe_options(method, recipe, "mnist")
    )
    expected = merge(expected, {"trainer": {"max_epochs": 3}, "recipe": recipe})
    assert config == expected


def test_no_two_recipes_say_the_same() -> None:
    bodies = [json.dumps(read_recipe(name)) for name in NAMES]
    assert len(set(bodies)) == len(bodies) > 20


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_of_a_method_and_of_data_sets_that_exist(name: str) -> None:
    method, recipe = name.split("/")
    assert method in METHODS and recipe in MEANINGS
    for title, section in read_recipe(name).items():
        if title == BELOW:
            assert read_recipe(section)
        else:
            assert title == EVERY or set(title.split()) <= set(DATA), title
            assert set(section) <= {"method", "data", "trainer", "protocol", "select"}


@pytest.mark.parametrize("method", ["ocgan", "ca_entropy", "oled", "nda"])
def test_each_of_the_four_methods_has_its_paper_and_it_is_not_the_default(method: str) -> None:
    for data in ("mnist", "cifar10"):
        assert flatten(recipe_options(method, "paper", data)) != flatten(
            recipe_options(method, "default", data)
        )
        assert recipe_options(method, "ours", data)["method"]["name"] == f"{method}_ours"


#: What each paper says, read from the paper and not from conf/: option -> value, and where it says it.
PAPERS: dict[str, dict[str, tuple[Any, str]]] = {
    "ocgan": {
        "method.latent_layout": (
            "map",
            "Network Architecture: tanh right after the last convolution",
        ),
        "method.image_discriminator_channels": (
            12,
            "Network Architecture: base channel size of D_v",
        ),
        "method.classifier_channels": (64, "Network Architecture: base channel size of C"),
        "method.dropout": (0, "Network Architecture names none"),
        "method.w_lat": (1, "section 3.2: 10 l_MSE + l_visual + l_latent"),
        "method.w_vis": (1, "the same"),
        "method.w_mse": (10, "the same"),
        "method.mse_reduction": ("sum", "section 3.2: a squared norm"),
        "method.noise_std": (0.2**0.5, "section 3.2: a variance of 0.2"),
        "method.use_latent_discriminator": (True, "section 3.2"),
        "method.use_image_discriminator": (True, "section 3.2"),
        "method.use_mining": (True, "section 3.2"),
        "method.mining_steps": (5, "Algorithm 1: five sub-iterations"),
        "method.mining_loss": ("unsaturated", "Algorithm 1: the loss of label 1"),
        "method.score_noise": (False, "the image itself is tested"),
        "select": ("val_loss", "Network Architecture: minimum MSE on the validation set"),
    },
    "ca_entropy": {
        "method.lr": (1e-3, "section 3: Adam, 1e-3"),
        "data.batch_size": (64, "section 3: 64, and 15 for COIL-100"),
        "protocol.val_fraction": (0.15, "section 3: 15 percent of the training set"),
        "method.latent_bound": ("none", "section 3 names no bound"),
        "method.score_norm": ("l1", "eq. 2"),
        "method.feature_norm": ("l2", "eq. 3"),
        "method.entropy": (True, "eq. 4"),
        "method.channel_attention": (True, "eq. 5"),
    },
    "oled": {
        "method.lr": (5e-4, "section 4.1"),
        "method.beta1": (0.5, "section 4.1"),
        "method.beta2": (0.9, "section 4.1"),
        "method.gamma": (50, "section 4.1"),
        "method.lam": (1, "section 4.1"),
        "method.t": (87.5, "section 4.1"),
        "trainer.max_epochs": (300, "section 4.1"),
        "method.mask": ("learned", "section 3.4"),
        "method.mask_grad": ("eps", "eq. 2"),
        "method.mm_every": (1, "section 3.5: both modules are trained at every step"),
        "method.mask_objective": ("mask_cont", "eq. 8: the mask module's objective"),
        "method.norm": ("all", "section 3.3: batch norm in every block"),
        "method.mask_norm": ("all", "section 3.4.1: batch norm in every block"),
        "method.out_act": ("linear_clip", "section 3.3: clipped to [-1, 1]"),
    },
    "nda": {
        "method.optimizer": ("sgd", "section 2.3"),
        "method.lr": (0.002, "section 2.3"),
        "method.momentum": (0.9, "section 2.3"),
        "method.weight_decay": (0.005, "section 2.3"),
        "data.batch_size": (128, "section 2.3"),
        "trainer.max_epochs": (100, "section 2.3"),
        "method.beta": (0.5, "section 2.3"),
        "method.gamma": (0.1, "section 2.3"),
        "method.w_lat": (1, "section 2.3: all lambdas 1"),
        "method.w_mie": (1, "section 2.3: all lambdas 1"),
        "method.recon": ("lap", "eq. 1"),
        "method.lat_reduction": ("sum", "eq. 2"),
        "method.encoder": ("dcgan", "section 2.3: DCGAN's networks"),
        "method.estimator_channels": (512, "section 2.3"),
        "method.latent_init": ("pca", "section 2.1"),
        "select": ("last", "no validation set is named"),
    },
}


@pytest.mark.parametrize("method", PAPERS)
@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_the_recipe_paper_has_the_numbers_of_the_paper(method: str, data: str) -> None:
    options = flatten(composed(f"method={method}", f"data={data}", "recipe=paper"))
    for option, (value, place) in PAPERS[method].items():
        if isinstance(value, float):
            value = pytest.approx(value, rel=1e-3)
        assert options[option] == value, f"{option}: {place}"


def test_the_recipe_paper_has_what_a_paper_says_of_one_data_set() -> None:
    ocgan = flatten(composed("method=ocgan", "data=cifar10", "recipe=paper"))
    # section 4.2: pre-processing as in Deep SVDD, then minus the class-mean image
    assert (ocgan["data.contrast"], ocgan["data.subtract_mean"]) == ("gcn", True)
    assert composed("method=ocgan", "data=mnist", "recipe=paper")["data"]["contrast"] == "none"
    # section 3: batches of 15 for COIL-100
    assert composed("method=ca_entropy", "data=coil100", "recipe=paper")["data"]["batch_size"] == 15


@pytest.mark.parametrize("data", ["mnist", "fmnist", "cifar10", "coil100", "coil20"])
def test_eq_1_of_nda_is_a_sum_over_the_values_of_an_image(data: str) -> None:
    """Ours is a mean, so its weight is their number."""
    config = composed("method=nda", f"data={data}", "recipe=paper")
    channels = 3 if data in ("cifar10", "coil100") else 1
    assert config["method"]["w_recon"] == channels * config["data"]["size"] ** 2


#: A command of the README or the docs, and kept results whose numbers they quote.
QUOTED = {
    "method=ocgan data=cifar10": "cifar10/p2/ocgan/cifar10/inlier0/seed0",
    "method=ocgan data=mnist": "mnist/p2/ocgan/mnist/inlier3/seed0",
    "method=oled data=mnist protocol=two_thirds": "mnist_two_thirds/two_thirds/oled/mnist/inlier8/seed0",
    "experiment=ocgan/table2_mnist": "mnist/p2/ocgan/mnist/inlier7/seed0",
    "method=ocgan data=fmnist protocol=p1": "fmnist/p1/ocgan/fmnist/inlier0/seed0",
    "method=ca_entropy data=mnist": "mnist/p2/ca_fixed_scale/mnist/inlier3/seed0",
    "method=ca_entropy data=cifar10": "cifar10/p2/ca_fixed_scale/cifar10/inlier1/seed0",
    "method=nda data=mnist": "mnist/p2/nda/mnist/inlier3/seed0",
    "method=nda data=fmnist protocol=p1": "fmnist/p1/nda/fmnist/inlier0/seed0",
    "method=nda data=cifar10": "cifar10/p2/nda/cifar10/inlier0/seed0",
}
PAGES = [CONF.parent / "README.md", *sorted((CONF.parent / "docs").rglob("*.md"))]
RESULTS = (CONF.parent / "docs" / "results.md").read_text()


@pytest.mark.parametrize(("command", "folder"), QUOTED.items())
def test_a_command_has_the_options_of_the_kept_numbers_that_the_docs_quote(
    command: str, folder: str
) -> None:
    plan, _, row = folder.partition("/")
    recorded = flat_options(read_result(archive(f"learn/{plan}") / row)["config"])
    typed = flat_options(composed(*command.split()))
    for key in sorted((recorded.keys() | typed.keys()) - {"select"}):
        if kind_of_option(key) == "numbers":
            assert typed.get(key) == recorded.get(key), key


def test_the_commands_of_the_docs_are_among_them() -> None:
    """Those of the four papers' methods without further options; protocol 2 is the default."""
    text = "\n".join(page.read_text() for page in PAGES)
    commands = re.findall(
        r"^noveltylab (method=\S+ data=\S+(?: protocol=\S+)?)(?: inlier=\S+)?(?: *#.*)?$",
        text,
        re.MULTILINE,
    )
    commands = [command.removesuffix(" protocol=p2") for command in commands]
    assert {
        "method=ocgan data=cifar10",
        "method=oled data=mnist protocol=two_thirds",
        "method=ocgan data=mnist",
    } <= set(commands)
    papers = r"method=(ocgan|ca_entropy|oled|nda) data=(mnist|fmnist|cifar10)\b"
    quoted = [command for command in commands if re.match(papers, command)]
    assert set(quoted) <= QUOTED.keys()


# Recorded configurations of older versions.

#: What recorded configurations held under `method`, and what they hold today.
OLD = {
    "ocgan": [
        ({"preset": "choice", "w_lat": None, "w_mse": None}, {"w_lat": 1.0, "w_mse": 250.0}),
        ({"preset": "readme", "w_lat": None, "w_mse": 7.0}, {"w_lat": 10.0, "w_mse": 7.0}),
    ],
    "nda": [
        (
            {"preset": "adam", "lr": None, "momentum": None, "weight_decay": 0.1},
            {"optimizer": "adam", "lr": 0.001},
        ),
        (
            {"preset": "sgd", "lr": None, "weight_decay": None},
            {"optimizer": "sgd", "lr": 0.002, "weight_decay": 0.005},
        ),
    ],
    "ca_entropy": [
        (
            {"ablation": "gan", "entropy": None, "channel_attention": None},
            {"entropy": False, "channel_attention": False},
        ),
        (
            {"ablation": "gan", "entropy": True, "channel_attention": None},
            {"entropy": True, "channel_attention": False},
        ),
        ({"bounded_latent": True}, {"latent_bound": "tanh"}),
        ({"bounded_latent": True, "latent_bound": "none"}, {"latent_bound": "tanh"}),
        ({"bounded_latent": False, "latent_bound": "batch_norm"}, {"latent_bound": "batch_norm"}),
        ({"bounded_latent": False}, {"latent_bound": "none"}),
    ],
    "oled": [
        (
            {"preset": "official", "gamma": None, "latent_size": None},
            {"gamma": 12.5, "latent_size": 64, "mm_every": 3},
        ),
        (
            {"preset": "paper", "gamma": None, "latent_size": 16},
            {"gamma": 50.0, "latent_size": 16, "mask_norm": "all"},
        ),
    ],
    "memae": [({"slots": None}, {"slots": 100})],
}


@pytest.mark.parametrize(
    ("method", "old", "today"), [(name, *case) for name, cases in OLD.items() for case in cases]
)
def test_a_recorded_null_becomes_the_number_that_it_stood_for(
    method: str, old: Config, today: Config, methods: dict[str, Config]
) -> None:
    target = {"name": method, "_target_": methods[method]["_target_"]}
    config = {"method": target | old, "data": {"name": "mnist", "size": 28}}
    translated = in_options_of_today(config)
    assert translated["method"].items() >= today.items()
    assert (
        not {"preset", "ablation", "bounded_latent"} & translated["method"].keys()
        and None not in translated["method"].values()
    )
    assert in_options_of_today(translated) == translated


@pytest.mark.parametrize(
    ("data", "shape", "gamma"),
    [
        ({"name": "cifar10", "size": 32}, None, 30.0),
        ({"name": "coil20", "size": 32}, None, 12.5),
        ({"name": "ucsd", "size": 30}, None, 50.0),
        ({"name": "images", "size": 32, "classes": "folders"}, [3, 32, 32], 30.0),
        ({"name": "images", "size": 32, "classes": "folders"}, [1, 32, 32], 12.5),
        ({"name": "images", "size": 32, "classes": "folders"}, None, None),  # not to be known
    ],
)
def test_numbers_of_oled_are_those_of_the_layers_that_it_chose(
    data: Config, shape: Any, gamma: Any
) -> None:
    method = {
        "name": "oled",
        "_target_": "noveltylab.methods.oled.OLED",
        "preset": "official",
        "gamma": None,
    }
    assert in_options_of_today({"method": method, "data": data}, shape)["method"]["gamma"] == gamma


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("oled_ours", "ours"), ("deep_svdd_first_code", "first_code"), ("ocgan", "default")],
)
def test_an_older_run_has_the_recipe_that_its_name_says(name: str, recipe: str) -> None:
    config = {"method": {"name": name, "_target_": "noveltylab.methods.pca.PCA"}, "data": {}}
    assert in_options_of_today(config)["recipe"] == recipe


@pytest.mark.parametrize(
    "broken", [{}, {"method": []}, {"method": {"_target_": 3}, "data": {}}, {"method": None}]
)
def test_a_damaged_record_is_left_to_its_reader(broken: Config) -> None:
    assert in_options_of_today(broken).get("method") == broken.get("method")


def test_a_run_records_its_numbers_and_one_of_before_gives_the_same_scores(
    run_here: Callable[..., Config], tmp_path: Path
) -> None:
    result = run_here("method=ocgan", *TINY)
    folder = tmp_path / "outputs/p1/ocgan/digits/inlier8/seed0"
    recorded = yaml.safe_load((folder / "config.yaml").read_text())
    assert recorded["recipe"] == "default" and None not in recorded["method"].values()
    assert result["config"]["method"]["w_mse"] == recorded["method"]["w_mse"] == 250.0
    before = tmp_path / "before"
    shutil.copytree(folder, before)
    write_as_before(before)
    assert read_result(before)["config"] == read_result(folder)["config"]
    assert rerun(before, [f"output={tmp_path / 'again'}", "trainer.accelerator=cpu"])


def write_as_before(folder: Path) -> None:
    """Records a run as it was recorded before there were recipes."""
    result = json.loads((folder / "result.json").read_text())
    config = result["config"]
    del config["recipe"]
    config["method"] |= {"preset": "choice", "w_lat": None, "w_vis": None, "w_mse": None}
    config["method"] |= {"mse_reduction": None, "noise_std": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    result["files"]["config.yaml"] = sha256_file(folder / "config.yaml")
    (folder / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("place", "today"),
    [
        ("memae/memae/mnist/inlier3/seed0", "two_thirds/memae/mnist/inlier3/seed0"),
        ("folder/pca/folder/inlier0/seed0", "folders/pca/images/inlier0/seed0"),
        ("folder/pca/bottle/inlier0/seed0", "folders/pca/bottle/inlier0/seed0"),
        ("p2/folder/mnist/inlier3/seed0", "p2/folder/mnist/inlier3/seed0"),
        ("a/memae", "a/memae"),
    ],
)
def test_a_place_of_before_is_one_of_today(place: str, today: str) -> None:
    assert place_of_today(place.split("/")) == tuple(today.split("/"))


def test_a_recorded_protocol_and_data_set_have_their_names_of_today() -> None:
    config = {
        "method": {"name": "memae", "_target_": "noveltylab.methods.pca.PCA"},
        "data": {"name": "folder", "label": None, "protocols": ["folder", "p1", "p2", "memae"]},
        "protocol": {"name": "memae", "val_fraction": 0.1},
    }
    today = in_options_of_today(config)
    assert today["method"]["name"] == "memae"
    assert today["data"]["name"] == "images"
    assert today["data"]["protocols"] == ["folders", "p1", "p2", "two_thirds"]
    assert today["protocol"] == {"name": "two_thirds", "val_fraction": 0.1}
    assert in_options_of_today(today) == today


@pytest.mark.parametrize(
    ("options", "today", "before"),
    [
        (("protocol=two_thirds", "inlier=8"), "two_thirds/pca/digits", "memae/pca/digits"),
        (("data=images",), "folders/pca/images", "folder/pca/folder"),
        (("data=images", "data.label=nuts"), "folders/pca/nuts", "folder/pca/nuts"),
        (("data=images", "protocol=p1"), "p1/pca/images", "p1/pca/folder"),
    ],
)
def test_a_run_of_before_is_read_under_the_names_of_today(
    run_here: Callable[..., Config],
    tmp_path: Path,
    options: tuple[str, ...],
    today: str,
    before: str,
) -> None:
    images = write_images(tmp_path / "parts", {"train/good": 30, "test/good": 8, "test/odd": 8})
    root = [f"data.root={images}"] if "data=images" in options else []
    run_here("method=pca", "trainer.accelerator=cpu", *root, *options)
    (folder,) = (path.parent for path in (tmp_path / "outputs").rglob("result.json"))
    assert folder.parent.parent == tmp_path / "outputs" / today
    expected = read_result(folder)
    old = tmp_path / "old" / before / folder.parent.name / folder.name
    shutil.copytree(folder, old)
    name_as_before(old)
    # read, reported with every number computed again, used, repeated
    result = read_result(old)
    files = [result.pop("files"), expected.pop("files")]
    assert files[0].keys() == files[1].keys() and result == expected
    collected = collect(tmp_path / "old", check=True)
    assert not collected.damaged and collected.checked == 1
    (run,) = collected.runs
    assert (run.result.protocol, run.result.data) == (expected["protocol"], expected["data"])
    assert not run.shortened
    detector = load_detector(old, "cpu")
    pixels = torch.zeros(1, *detector.shape)
    assert detector.novelty(pixels) == load_detector(folder, "cpu").novelty(pixels)
    assert rerun(old, [*root, f"output={tmp_path / 'again'}", "trainer.accelerator=cpu"])
    # both of one cell are never counted twice
    shutil.copytree(old, tmp_path / "outputs" / before / folder.parent.name / folder.name)
    collected = collect(tmp_path / "outputs")
    assert len(collected.runs) == 1
    ((_, reason),) = collected.damaged
    assert "holds this run as well" in reason


def name_as_before(folder: Path) -> None:
    """Records a run by the names that protocols and data sets once had."""
    result = json.loads((folder / "result.json").read_text())
    config = result["config"]
    protocols = {"two_thirds": "memae", "folders": "folder"}
    config["data"]["protocols"] = [
        protocols.get(name, name) for name in config["data"]["protocols"]
    ]
    result["protocol"] = protocols.get(result["protocol"], result["protocol"])
    config["protocol"]["name"] = result["protocol"]
    if config["data"]["name"] == "images":
        config["data"]["name"] = "folder"
    if result["data"] == "images":
        result["data"] = "folder"
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    result["files"]["config.yaml"] = sha256_file(folder / "config.yaml")
    (folder / "result.json").write_text(json.dumps(result))
