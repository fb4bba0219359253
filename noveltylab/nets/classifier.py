"""The classifying network that a backbone was trained as, with its head."""

import torch
from torch import nn

from noveltylab.errors import UserError
from noveltylab.nets.backbone import Backbone, find_weights, import_timm, matched


def classifier_of(backbone: Backbone, file: str | None) -> nn.Module:
    """The whole network of a backbone with its trained head: images as `stretched` -> logits.

    In evaluation mode.

    Raises:
        UserError: The file holds no such head.
    """
    weights = find_weights(backbone.name, file)
    with torch.random.fork_rng([]):
        whole: nn.Module = import_timm().create_model(backbone.name)
    state = matched(weights, whole.state_dict(), backbone.name)
    missing = sorted(whole.state_dict().keys() - state.keys())
    if missing:
        raise UserError(
            f"method.ewc=true: the weights of {weights.origin} lack the classifying head of "
            f"{backbone.name} ({missing[0]}); take a file that has it, or method.ewc=false"
        )
    whole.load_state_dict(state)
    return whole.eval()


def same_parameters(whole: nn.Module, backbone: Backbone) -> list[nn.Parameter]:
    """The parameters of a whole network that are those of its backbone that train, in their order.

    UserError where they cannot be told.
    """
    pairs = zip(whole.parameters(), backbone.network.parameters(), strict=False)
    parameters = []
    for parameter, counterpart in pairs:
        if parameter.shape != counterpart.shape or not torch.equal(parameter, counterpart):
            raise UserError(
                f"method.ewc=true: timm orders the parts of {backbone.name} in another way where it "
                "gives features alone; take another network, or method.ewc=false"
            )
        if counterpart.requires_grad:
            parameters.append(parameter)
    return parameters
