import pytest
import torch

from training.tiny_world.recorded import Recorded, made_ahead

CPU = torch.device("cpu")


def test_things_are_made_in_order_and_ahead():
    made = []

    def make(step: int) -> int:
        made.append(step)
        return 10 * step

    taken = made_ahead(make, range(3, 6), CPU)
    assert next(taken) == 30
    assert list(taken) == [40, 50]
    assert made == [3, 4, 5]


def test_nothing_to_make():
    assert list(made_ahead(lambda step: step, range(4, 4), CPU)) == []


def test_an_error_in_making_reaches_the_training():
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("no such clip")
        return step

    taken = made_ahead(make, range(3), CPU)
    assert next(taken) == 0
    with pytest.raises(ValueError, match="no such clip"):
        next(taken)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="recordings are of a GPU")
def test_recordings_do_what_the_steps_do():
    device = torch.device("cuda")
    weight = torch.zeros(3, device=device)

    def step(inputs: dict[str, torch.Tensor], sign: int) -> dict[str, torch.Tensor]:
        weight.add_(sign * inputs["x"].sum(0))
        return {"loss": weight.sum()}

    recorded = Recorded(step, device)
    expected = torch.zeros(3)
    for i, rows in enumerate([2, 2, 2, 4, 2, 4, 4]):
        x = torch.full((rows, 3), float(i))
        sign = -1 if i == 4 else 1
        expected += sign * x.sum(0)
        loss = recorded({"x": x.to(device)}, sign=sign)["loss"]
        assert torch.equal(weight.cpu(), expected)
        assert loss.item() == expected.sum()
