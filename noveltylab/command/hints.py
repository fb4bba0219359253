"""The option that may be meant by one that does not exist.

It has the same name elsewhere, another name by a habit of the field, or is a near miss.
"""

import os
from collections.abc import Iterable

from noveltylab.errors import UserError, near_name

#: Our options, and what they are called elsewhere.
HABITS = {
    "trainer.max_epochs": (
        "epoch epochs n_epochs n_epoch num_epochs nepochs num_epoch max_epoch train_epochs niter n_iter iterations "
        "steps max_steps num_steps"
    ),
    "trainer.accelerator": "device cuda gpu gpus use_gpu use_cuda n_gpu n_gpus gpu_id gpu_ids cpu ngpu no_cuda",
    "trainer.devices": "gpus n_gpu n_gpus ngpu num_devices n_devices world_size nproc_per_node",
    "trainer.precision": "amp fp16 bf16 half dtype mixed_precision float16",
    "trainer.score_batch_size": "eval_batch_size test_batch_size val_batch_size",
    "trainer.val_every": "check_val_every_n_epoch eval_every val_interval eval_interval",
    "data.batch_size": "bs batch batchsize train_batch_size",
    "data.root": (
        "data_dir data_path data_root dataroot datadir dataset_path dataset_root dataset_dir image_dir image_path "
        "images path dir folder input img_dir imgs"
    ),
    "data": "dataset datasets data_name dataset_name ds datamodule",
    "data.size": "image_size img_size imsize isize resolution image_shape input_size crop_size resize",
    "data.limit_train": "n_train limit max_samples subset num_train train_size limit_train_batches max_train",
    "data.download": "fetch",
    "method": "model models algo algorithm net network detector arch architecture backbone methods",
    "method.lr": "learning_rate learningrate lrate learn_rate base_lr",
    "method.latent_size": "latent_dim latent nz z_dim zdim code_size hidden_size embedding_dim rep_dim latent_dims",
    "method.k": "n_neighbors n_neighbours num_neighbors neighbors neighbours",
    "method.components": "n_components num_components",
    "inlier": "class cls digit label normal_class known_class normal target inlier_class inliers category normal_label",
    "output": "out output_dir out_dir outdir outputs log_dir logdir save_dir savedir workdir work_dir result_dir results",
    "seed": "random_seed random_state manual_seed manualseed rng seeds",
    "force": "overwrite rerun restart force_rerun",
    "logger": "log wandb use_wandb loggers",
    "logger.project": "wandb_project project_name",
    "logger.entity": "team user wandb_entity",
    "protocol": "split setting",
    "protocol.val_fraction": "val_split val_size valid_size validation_split val_ratio val_share",
    "resources.num_cpus": "workers num_workers n_workers n_jobs threads num_threads cpus n_cpus nthreads",
    "recipe": "preset presets tuned variant",
    "select": "checkpoint_selection early_stopping monitor",
    "pictures": "plot plots figures draw save_images visualize visualise",
    "experiment": "table exp config",
    "debug": "fast_dev_run dry_run smoke_test quick",
    "hydra/launcher": "launcher",
}
#: Options that are gone, as typed once, and what to type now.
MOVED = {
    "preset=paper": "recipe=default (recipe=paper is the paper read literally)",
    "preset=ours": "recipe=ours",
    "preset=first_code": "recipe=first_code",
    "method.preset=choice": "recipe=default",
    "method.preset=paper_sum": "method.w_mse=10 method.mse_reduction=sum method.noise_std=0.447",
    "method.preset=readme": "recipe=readme, or what it has in conf/recipe/ocgan.yaml",
    "method.preset=release": "recipe=release, or what it has in conf/recipe/ocgan.yaml",
    "method.preset=official": "recipe=default",
    "method.preset=paper": "recipe=paper",
    "method.preset=sgd": "method.optimizer=sgd method.lr=0.002 method.weight_decay=0.005",
    "method.preset=adam": "method.optimizer=adam",
    "method.ablation=full": "method.entropy=true method.channel_attention=true",
    "method.ablation=entropy": "method.channel_attention=false",
    "method.ablation=attention": "method.entropy=false",
    "method.bounded_latent=true": "method.latent_bound=tanh",
    "method.bounded_latent=false": "method.latent_bound=none",
    "method.ablation=gan": "method.entropy=false method.channel_attention=false",
    "protocol=memae": "protocol=two_thirds",
    "protocol=folder": "protocol=folders",
    "protocol.name=memae": "protocol.name=two_thirds",
    "protocol.name=folder": "protocol.name=folders",
    "data=folder": "data=images",
    "data.name=folder": "data.name=images",
}
#: Folders of Hydra's own: what runs leave behind lies where `output` says.
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
#: names that are hinted at together
MOST = 3


def check_moved(arguments: Iterable[str]) -> None:
    """UserError for an option that there was once, or of Hydra's folders; says what to type now."""
    for argument in arguments:
        option, _, value = argument.lstrip("+~").partition("=")
        # Lightning gives one to the helper processes of a run over several devices
        if option in FOLDERS and "LOCAL_RANK" not in os.environ:
            raise UserError(
                f"{argument}: run folders, also those of sweeps, lie below output=...; "
                f"use output={value or 'outputs'}"
            )
        key, _, values = argument.lstrip("+").partition("=")
        options = [f"{key}={value}" for value in values.split(",")]
        replacements = [MOVED[option] for option in options if option in MOVED]
        if replacements:
            raise UserError(
                f"{argument}: no such option any more; now it is {', or '.join(replacements)}"
            )


def option_hint(key: str, options: Iterable[str]) -> str:
    """`did you mean 'method.lr'? ` for an option that does not exist, "" if nothing is near.

    Args:
        key: As it was typed, with dots.
        options: All options with dots; their groups count as options, too.
    """
    matches = [f"'{option}'" for option in meant(key, options)]
    if not matches:
        return ""
    return f"did you mean {' or '.join(matches)}? "


def meant(key: str, options: Iterable[str]) -> list[str]:
    """The existing options that may be meant by `key`, the likeliest first."""
    parent, _, name = key.lower().replace("-", "_").rpartition(".")
    candidates = {"experiment", "hydra/launcher"}
    for option in options:
        if not option.endswith("_target_"):
            candidates.add(option)
            if "." in option:
                candidates.add(option.rpartition(".")[0])
    # by the last part of an option's name; beside it those that have the typed parent
    last_parts: dict[str, list[str]] = {}
    siblings: list[str] = []
    for option in sorted(candidates):
        group, _, last_part = option.rpartition(".")
        last_parts.setdefault(last_part, []).append(option)
        if group == parent:
            siblings.append(last_part)
    # the same name elsewhere, or another name by habit
    matches = list(last_parts.get(name, []))
    for option, names in HABITS.items():
        if option in candidates and option not in matches and name in names.split():
            matches.append(option)
    if matches:
        return matches[:MOST]
    # a near miss
    sibling = near_name(name, siblings)
    if sibling:
        return [f"{parent}.{sibling}" if parent else sibling]
    close = near_name(name, last_parts)
    return last_parts[close][:MOST] if close else []
