"""Real training steps, and what torch counts in them."""

from __future__ import annotations

import torch
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType

from visllama.machine.devices import frozen_dtype
from visllama.model.sharding import compute_again
from visllama.model.weights import build_model
from visllama.text.tokens import IGNORE_INDEX, image_span
from visllama.training.optim import build_optimizer

STAGE_1, STAGE_2 = ("connector", "markers"), ("connector", "markers", "adapter")
QV = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
ALL = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
ADAMW = {
    "_target_": "torch.optim.AdamW", "lr": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.01, "schedule": "cosine",
    "warmup_fraction": 0.1, "clip_norm": 1.0, "lr_by_part": {}, "fused": True,
}  # fmt: skip


def batch(model, samples: int = 8, tokens: int = 48) -> dict[str, torch.Tensor]:
    images, size = model.num_image_tokens, model.vision_encoder.transform.size_px
    words = [torch.randint(4, 400, (tokens - images - 3,)).tolist() for _ in range(samples)]
    ids = torch.tensor([[1, *image_span(images), *text] for text in words])
    labels = ids.masked_fill(torch.arange(tokens) < images + 3, IGNORE_INDEX)
    return {"input_ids": ids, "labels": labels, "pixel_values": torch.zeros(samples, 3, size, size, dtype=torch.uint8)}


class Tracker(MemTracker):
    """torch's, which hangs its hooks on every parameter: on frozen ones it cannot."""

    def _track_module_params_and_buffers(self, module, install_grad_hooks=True):
        def count(parameter) -> None:
            self._update_and_maybe_create_winfos(parameter.grad, _MemRefType.GRAD)

        found = super()._track_module_params_and_buffers(module, install_grad_hooks=False)
        for parameter in module.parameters():
            if parameter.requires_grad and parameter not in self._param_to_grad_hook_handles:
                handle = parameter.register_post_accumulate_grad_hook(count)
                self._param_to_grad_hook_handles[parameter] = (handle, handle)
        return found


def real_model(parts: dict, trainable, precision: str, recomputes: bool = False):
    model = build_model(parts, trainable).load_base_weights(frozen_dtype(precision)).train()
    if recomputes:
        compute_again(model)
    return model


def take_step(model, optimizer, batches, precision: str, between=lambda: None, device: str = "cpu") -> None:
    """Do what the training step does, under Lightning's autocast."""
    enabled = precision.endswith("-mixed")
    with torch.autocast(device, torch.bfloat16, enabled, cache_enabled=False):
        for one in batches:
            output = model(**one)
            (output.loss_sum / 10).backward()
            del output
            between()
        optimizer.step()
        optimizer.zero_grad()


def tracked(parts: dict, trainable, precision: str, micro_batches: int, recomputes: bool) -> dict[str, int]:
    """Return what torch's tracker counts at the peak of a step; not its first, so the optimizer has its state."""
    torch.manual_seed(0)
    model = real_model(parts, trainable, precision, recomputes)
    optimizer = build_optimizer(model, ADAMW)
    batches = [batch(model) for _ in range(micro_batches)]
    take_step(model, optimizer, batches, precision)
    tracker = Tracker()
    tracker.track_external(model, optimizer, *(tensor for one in batches for tensor in one.values()))
    with tracker:
        take_step(model, optimizer, batches, precision, tracker.reset_mod_stats)
    return {str(key): value for key, value in tracker.get_tracker_snapshot("peak")[torch.device("cpu")].items()}
