"""White-box: a PyTorch network, from the zoo or a factory of the user's; weights given or trained here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekd.artifacts import sha256_file
from edgekd.teachers.teacher import GIVEN, TORCH, Options, Teacher, teacher

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from edgekd.config.schema import Config
    from edgekd.data.resolve import Dataset
    from edgekd.distill.method import Knowledge
    from edgekd.pipeline.stages import Context


@teacher(
    TORCH,
    transparency="white-box",
    provides={"features", "logits", "probabilities", "labels"},
)
class TorchTeacher(Teacher):
    """`module` can be looked into; it is the one kind with features."""

    exports = True
    Options: ClassVar[type[Options] | None] = None

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    @classmethod
    def identity(cls, config: Config, base: Path) -> dict[str, Any]:
        """The network's source, its weights or how it is trained."""
        from edgekd.pipeline.stages import network_part, training_part, weights_path

        teacher = config.teacher
        return {
            "network": network_part(teacher, base, "teacher"),
            "weights": sha256_file(weights_path(teacher, base)) if teacher.weights else None,
            "train": None if teacher.weights else training_part(teacher.train),
        }

    @classmethod
    def make(cls, context: Context) -> None:
        """`model.safetensors`, `model.json` and, if trained here, `history.json`."""
        from edgekd.data.views import Views
        from edgekd.distill.objective import Objective, hard_loss
        from edgekd.distill.trainer import train
        from edgekd.models import role
        from edgekd.models.weights import load_weights
        from edgekd.pipeline.stages import weights_path

        config, dataset = context.config, context.dataset
        # Weights from elsewhere are of a network that gives the data's units by itself.
        seed = GIVEN if config.teacher.weights else config.seed
        module = role.build(
            config.teacher, "teacher", dataset, seed=seed, base=context.base,
            scaled=not config.teacher.weights,
        )  # fmt: skip
        history = None
        checkpoint = context.folder / "checkpoint.pt"
        if config.teacher.weights:
            load_weights(module, weights_path(config.teacher, context.base))
        else:
            history = train(
                module,
                dataset,
                Views(dataset, config.data.augment, config.data.seed),
                Objective(hard=hard_loss(dataset)),
                config.teacher.train,
                seed=seed,
                checkpoint=checkpoint,
                progress=context.progress,
                name="teacher",
            )
        role.save_network(
            module, config.teacher, "teacher", context.folder, dataset,
            seed=seed, history=history,
        )  # fmt: skip
        checkpoint.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path, base: Path, dataset: Dataset) -> TorchTeacher:
        """The finished network."""
        from edgekd.models import role

        return cls(role.load_network(folder, base))

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Whatever the network gives, finite or not."""
        import torch

        with torch.inference_mode():
            logits: np.ndarray = self.module(torch.from_numpy(x)).numpy()
        return logits

    def knowledge(self, inputs: Tensor, indices: Tensor, view: int) -> Knowledge:
        """Its logits; features are read by taps on `module`."""
        import torch

        from edgekd.distill.method import Knowledge

        with torch.inference_mode():
            return Knowledge(self.module.to(inputs.device)(inputs))
