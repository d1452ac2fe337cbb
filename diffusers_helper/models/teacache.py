"""TeaCache as FramePack does it, as diffusers hooks: skip all blocks while little changes."""

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch.func import functional_call

_HOOK = "framepack_teacache"
# FramePack's fit of the change of the output against the change of the first block's input.
_POLYNOMIAL = (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896)


def _predicted_change(d: float) -> float:
    result = 0.0
    for coefficient in _POLYNOMIAL:
        result = result * d + coefficient
    return result


class _PassState(BaseState):
    """What one pass, positive or negative, remembers between its steps."""

    def __init__(self, num_steps: int, threshold: float) -> None:
        self.num_steps = num_steps
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        self.step = 0
        self.change = 0.0
        self.modulated: torch.Tensor | None = None
        self.entered: torch.Tensor | None = None
        self.residual: torch.Tensor | None = None
        self.skipping = False

    def enter(self, modulated: torch.Tensor, hidden_states: torch.Tensor) -> None:
        """Decide for the step that begins with `hidden_states`."""
        if self.step % self.num_steps in (0, self.num_steps - 1):
            self.skipping = False
        else:
            d = (modulated - self.modulated).abs().mean() / self.modulated.abs().mean()
            self.change += _predicted_change(d.item())
            self.skipping = self.change < self.threshold
        if not self.skipping:
            self.change = 0.0
            self.entered = hidden_states
        self.modulated = modulated
        self.step += 1

    def leave(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The output of all blocks, given the last block's (or its input, where skipping)."""
        if self.skipping:
            return hidden_states + self.residual
        self.residual = hidden_states - self.entered
        self.entered = None
        return hidden_states


class _BlockHook(ModelHook):
    _is_stateful = True

    def __init__(self, states: StateManager, first: bool, last: bool) -> None:
        super().__init__()
        self.states = states
        self.first = first
        self.last = last

    def new_forward(self, block, hidden_states, encoder_hidden_states, temb, *args, **kwargs):
        state = self.states.get_state()
        if self.first:
            # An offloaded block's weights may be elsewhere, and a skipped step need not fetch them
            # all: only those of this norm.
            norm = block.norm1
            weights = {
                name: p.to(hidden_states.device) for name, p in norm.named_parameters(recurse=True)
            }
            modulated = functional_call(norm, weights, (hidden_states,), {"emb": temb})[0]
            state.enter(modulated, hidden_states)
        if not state.skipping:
            hidden_states, encoder_hidden_states = self.fn_ref.original_forward(
                hidden_states, encoder_hidden_states, temb, *args, **kwargs
            )
        if self.last:
            hidden_states = state.leave(hidden_states)
        return hidden_states, encoder_hidden_states

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.states.reset()
        return module


def apply_teacache(transformer: torch.nn.Module, num_steps: int, threshold: float) -> None:
    """Cache `transformer`'s blocks between steps, each `cache_context` by itself.

    Replaces an earlier cache and forgets what it held.

    Args:
        num_steps: calls of a pass in one sampling; the first and the last are always computed.
        threshold: summed predicted change from which on a step is computed.
    """
    remove_teacache(transformer)
    states = StateManager(_PassState, (num_steps, threshold))
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    for block in blocks:
        hook = _BlockHook(states, first=block is blocks[0], last=block is blocks[-1])
        HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, _HOOK)
    HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()


def remove_teacache(transformer: torch.nn.Module) -> None:
    """Undo `apply_teacache`; nothing happens where it was not applied."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.remove_hook(_HOOK, recurse=True)
    registry.invalidate_child_registries_cache()
