"""The part of a recognizer that is deployed, and its evaluation after export."""

from collections.abc import Callable

from torch import Tensor, nn

from .recognizer import Recognizer3d

AXES = {0: 'batch', 2: 'frames', 3: 'height', 4: 'width'}
"""Dynamic axes of the input of an exported file."""

CHECK_SIZES = ('16x64x64', '17x65x97')


class Network(nn.Module):
    """Input normalisation, backbone and head of a recognizer: clips in, logits out.

    It omits the views of a video and the mean over them.

    Shape:
        (N, 3, T, H, W) float32 from 0 to 255 -> (N, num_classes)

    Raises:
        ValueError: For another kind of model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Recognizer3d) -> None:
        super().__init__()
        if type(model) is not Recognizer3d:
            raise ValueError(f'model is a {type(model).__name__}: a Recognizer3d is expected')
        self.register_buffer('mean', model.data_preprocessor.mean.clone())
        self.register_buffer('std', model.data_preprocessor.std.clone())
        self.backbone = model.backbone
        self.head = model.head

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.backbone((clips - self.mean) / self.std))


def channel_order(model: Recognizer3d) -> str:
    """Return the channel order of `Network`'s input."""
    return 'RGB'


class ExportedHead(nn.Module):
    """Head that runs an exported `Network` on the preprocessor's normalised clips."""

    def __init__(self, run: Callable[[Tensor], Tensor], model: Recognizer3d) -> None:
        super().__init__()
        self.run = run
        self.mean, self.std = model.data_preprocessor.mean.clone(), model.data_preprocessor.std.clone()

    def forward(self, clips: Tensor) -> Tensor:
        return self.run(clips * self.std + self.mean)


def answer_with(run: Callable[[Tensor], Tensor], model: Recognizer3d) -> None:
    """Replace the model's own layers by an exported `Network`, so that the recipe's test evaluates it."""
    model.head = ExportedHead(run, model)
    model.backbone = nn.Identity()
