"""What models cost, against counts by hand."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.cost.activations import trace_activations
from spkexp.cost.macs import count_macs
from spkexp.cost.memory import largest_batch, optimizer_bytes, peak_bytes
from spkexp.cost.speed import module_shares, utterances_per_second
from spkexp.cost.trace import Trace
from spkexp.cost.workload import CannotRun, OutOfMemory, Workload
from spkexp.models.speaker import SpeakerModel
from spkexp.ops.counting import counting, declared, scan_macs
from tests.model_tools import count, speaker_model

SAMPLES = 1000
EMBEDDING = 3


class Samples(nn.Module):
    """The waveform as features, (B, samples) -> (B, 1, samples), a view."""

    sample_rate, out_channels = SAMPLES, 1

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return waveform.unsqueeze(1), lengths


class Encoder(nn.Module):
    """`layers`, in sequence."""

    def __init__(self, out_channels: int, *layers: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.parts = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))
        self.layers = layers

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for layer in self.layers:
            x = layer(x)
        return x, None


class Mean(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        return hidden.mean(dim=2)


def workload(out_channels: int, *layers: Callable[[Tensor], Tensor]) -> Workload:
    """Utterances of 1 s, 1000 samples; layers, mean over time, a linear layer to 3."""
    encoder = Encoder(out_channels, *layers)
    return Workload(SpeakerModel(Samples(), encoder, Mean(out_channels), EMBEDDING, False, False), 1.0, "fp32")


def test_macs_of_convolutions() -> None:
    work = workload(6, nn.Conv1d(1, 4, 5, stride=2), nn.Conv1d(4, 6, 3, groups=2))
    frames = (SAMPLES - 5) // 2 + 1
    # Each output sums kernel x (inputs / groups) products.
    first, second = 4 * frames * 5 * 1, 6 * (frames - 2) * 3 * (4 // 2)
    macs = count_macs(work)
    assert (macs.model, macs.features) == (first + second + 6 * EMBEDDING, 0)
    assert macs.by_module["encoder.parts.1"] == second
    assert macs.by_module["encoder"] == first + second


def test_macs_of_the_x_vector() -> None:
    frames = 1 + (32000 - 400) // 160
    layers = [(24, 512, 5), (512, 512, 3), (512, 512, 3), (512, 512, 1), (512, 1500, 1)]
    expected = sum(before * after * kernel * frames for before, after, kernel in layers) + 2 * 1500 * 512
    assert count_macs(Workload(speaker_model("xvector"), 2.0, "fp32")).model == expected


def test_macs_of_attention() -> None:
    """Scores and weighted sum, for each of 2 heads: T² products of 4 numbers, twice."""

    def attention(x: Tensor) -> Tensor:
        heads = x[..., :50].unflatten(1, (2, 4)).transpose(2, 3)  # (B, 2, T, 4)
        return F.scaled_dot_product_attention(heads, heads, heads).transpose(2, 3).flatten(1, 2)

    macs = count_macs(workload(8, nn.Conv1d(1, 8, 1), attention))
    assert macs.model == 8 * SAMPLES + 2 * (2 * 2 * 4 * 50 * 50) // 2 + 8 * EMBEDDING


def scan(x: Tensor) -> Tensor:
    """h_t = a h_{t-1} + b u_t, y_t = c · h_t with 5 states, whose read-out is a matrix product or not."""
    batch, channels, length = x.shape
    h = x.new_zeros(batch, channels, 5)
    c = x.new_ones(5, 1)
    outputs = []
    with declared("scan", scan_macs(batch, channels, length, 5)):
        for t in range(length):
            h = 0.5 * h + x[:, :, t : t + 1]
            outputs.append(h @ c if t % 2 else h.sum(dim=2, keepdim=True))
    return torch.cat(outputs, dim=2)


def test_macs_of_a_scan_are_what_it_declares() -> None:
    """By hand: for each of 4 channels, 40 steps and 5 states a h, b u and c h."""
    macs = count_macs(workload(4, nn.Conv1d(1, 4, 1, stride=25), scan))
    assert macs.declared == {"scan": 4 * 40 * 5 * 3}
    assert macs.by_module["encoder"] == 4 * 40 + 4 * 40 * 5 * 3
    assert macs.model == macs.by_module["encoder"] + 4 * EMBEDDING


def test_declarations_replace_what_was_seen() -> None:
    seen = [0]
    with counting(lambda: seen[0]) as tally:
        seen[0] += 7
        with declared("outer", 100):
            seen[0] += 30
            with declared("inner", 5):
                seen[0] += 2
        seen[0] += 1
    assert (tally.total(), tally.by_operation) == (108, {"outer": 100})
    with declared("scan", 5):  # no count is on
        seen[0] += 1
    assert tally.total() == 109


@pytest.mark.parametrize("batch", [2, 64])
def test_memory_of_a_small_network(batch: int) -> None:
    work = workload(4, nn.Conv1d(1, 4, 1, bias=False), torch.relu)
    parameters = 4 * (4 + 4 * EMBEDDING + EMBEDDING)
    waveform, activation, lengths = 4 * batch * SAMPLES, 4 * batch * 4 * SAMPLES, 8 * batch
    # The convolution's result is there until the rectifier's is.
    assert peak_bytes(work, batch, training=False) == parameters + waveform + lengths + 2 * activation
    # Backward: the rectifier's saved result, its gradient and that of its input, beside what is small: embeddings,
    # means, their gradients, and the gradients of the linear layer.
    training = peak_bytes(work, batch, training=True) - (parameters + waveform + lengths + 3 * activation)
    assert 4 * (4 * EMBEDDING + EMBEDDING) <= training <= 4 * (4 * EMBEDDING + EMBEDDING) + 4 * batch * 20
    assert optimizer_bytes(work.model) == 2 * parameters + 4 * 3


@pytest.mark.parametrize("training", [False, True])
def test_memory_on_paper_is_that_of_the_pass_itself(training: bool) -> None:
    work = Workload(speaker_model("ecapa_small"), 1.0, "fp32")
    waveform = work.waveform(3)
    trace = Trace()
    for tensor in (*work.model.parameters(), *work.model.buffers(), waveform):
        trace.add(tensor, "input")
    with trace:
        work.run(waveform, training)
    assert peak_bytes(work, 3, training) == trace.peak()[0]


def test_a_model_that_looks_at_its_values_is_run() -> None:
    def looks(x: Tensor) -> Tensor:
        return torch.relu(x) if bool(x.isfinite().all()) else x

    plain, looking = (workload(4, nn.Conv1d(1, 4, 1), layer) for layer in (torch.relu, looks))
    assert count_macs(looking).model == count_macs(plain).model
    assert peak_bytes(looking, 8, training=True) == peak_bytes(plain, 8, training=True)
    assert all(parameter.grad is None for parameter in looking.model.parameters())


def test_a_model_that_takes_addresses_is_run() -> None:
    def foreign(x: Tensor) -> Tensor:
        assert x.data_ptr()  # zero, on paper: what writes there ends the process
        return torch.relu(x)

    plain, taking = (workload(4, nn.Conv1d(1, 4, 1), layer) for layer in (torch.relu, foreign))
    assert peak_bytes(taking, 8, training=True) == peak_bytes(plain, 8, training=True)


def test_autocast_halves_what_a_convolution_gives() -> None:
    layers = nn.Conv1d(1, 64, 1), nn.Conv1d(64, 64, 1)
    full, half = (Workload(workload(64, *layers).model, 1.0, precision) for precision in ("fp32", "bf16"))
    ratio = peak_bytes(half, 16, training=False) / peak_bytes(full, 16, training=False)
    assert ratio == pytest.approx(0.5, abs=0.02)


def test_one_utterance_cannot_train_a_batch_normalisation() -> None:
    with pytest.raises(CannotRun, match="more than one utterance"):
        peak_bytes(Workload(speaker_model("ecapa_small"), 0.5, "fp32"), 1, training=True)


def kinked(batch: int) -> int:
    return 1000 + 10 * batch + 30 * max(0, batch - 40)


def full_at_100(batch: int) -> int:
    if batch > 100:
        raise OutOfMemory("full")
    return batch**2


@pytest.mark.parametrize(
    ("peak", "limit", "expected"),
    [
        (lambda batch: 1000 + 10 * batch, 1_000_000, 99_900),
        (lambda batch: 1000 + 10 * batch, 1_000_009, 99_900),
        (lambda batch: 1000 + 10 * batch, 1050, 5),
        (lambda batch: 1000 + 10 * batch, 1020, 2),
        (lambda batch: 1000 + 10 * batch, 1019, 0),
        (kinked, 1000 + 10 * 500 + 30 * 460, 500),
        (full_at_100, 10**9, 100),
        (lambda batch: batch**2, 5000, 70),
    ],
)
def test_largest_batch(peak: Callable[[int], int], limit: int, expected: int) -> None:
    assert largest_batch(peak, limit) == expected


def test_largest_batch_of_a_model_fits_and_the_next_does_not() -> None:
    work = workload(4, nn.Conv1d(1, 4, 1), torch.tanh)
    limit = 300 * 2**20
    largest = largest_batch(lambda batch: peak_bytes(work, batch, True), limit)
    assert peak_bytes(work, largest, True) <= limit < peak_bytes(work, largest + 1, True)


def test_activations_over_twice_the_inputs_are_explained() -> None:
    relu = nn.ReLU(inplace=True)
    found = trace_activations(workload(2, nn.Conv1d(1, 8, 1), relu, nn.Conv1d(8, 2, 1)))
    (conv,) = found.over_twice  # the encoder holds 10 times its input, of which these are 8
    assert (conv.names, conv.kind, conv.ratio, conv.reason) == (("encoder.parts.0",), "Conv1d", 8.0, "channels 1 → 8")
    assert conv.bytes == 8 * 4 * SAMPLES
    assert found.by_module["encoder"] == (8 + 2) * 4 * SAMPLES
    assert found.by_module["encoder.parts.1"] == 0  # in place
    assert found.outputs["encoder"].shape[1:] == (2, SAMPLES)
    (encoder,) = trace_activations(workload(1, lambda x: (torch.cat([x, x, x], dim=1) + 1).sum(1, True))).over_twice
    assert (encoder.names, encoder.ratio) == (("encoder",), 6.0)
    assert encoder.reason == "input 1×1000; at once cat 3×1000, add 3×1000"


def test_like_modules_are_one_entry() -> None:
    layers = [layer for _ in range(3) for layer in (nn.Conv1d(1, 8, 1), nn.Conv1d(8, 1, 1))]
    (conv,) = trace_activations(workload(1, *layers)).over_twice
    assert conv.names == ("encoder.parts.0", "encoder.parts.2", "encoder.parts.4")
    assert conv.pattern == "encoder.parts.*"


def test_speed_is_of_real_passes() -> None:
    work = workload(4, nn.Conv1d(1, 4, 1))
    before = [parameter.clone() for parameter in work.model.parameters()]
    for training in (False, True):
        assert utterances_per_second(work, 4, training, steps=2) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, work.model.parameters(), strict=True))
    shares = module_shares(work, 4)
    assert shares[""] == 1.0
    assert 0 < shares["encoder.parts.0"] < shares["encoder"] < 1


def test_parameters_of_the_published_size() -> None:
    assert count(speaker_model("xvector")) == 4_211_604
