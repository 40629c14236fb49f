"""How the chemist is pretrained: next-token likelihood of the component sets of known MOFs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promof_hpc.chem.sequence import UNK
from promof_hpc.config.pretrain import ChemistTraining
from promof_hpc.errors import UsageError
from promof_hpc.policy.batches import BatchOrder, step_generator
from promof_hpc.policy.chemist import Chemist, ChemistSettings, Dropout
from promof_hpc.policy.chemist_quality import Known, card_quality, judge, written
from promof_hpc.policy.conditions import Conditions
from promof_hpc.policy.linker_swap import LinkerSwap
from promof_hpc.policy.random_smiles import rewritten
from promof_hpc.policy.sampling import log_probs, padded, said_mask
from promof_hpc.policy.training_data import TrainingData, energies_of, labels_of
from promof_hpc.policy.weights import save_chemist


class ChemistCourse:
    """Next-token likelihood of the component sets of known MOFs under their own properties."""

    policy = "chemist"

    def __init__(self, data: TrainingData, settings: ChemistTraining):
        """Take the training set.

        Raises:
            UsageError: the energies' reference set cannot be read, or no sequence is short enough.
        """
        energies, encode = energies_of(settings.energies), data.vocabulary.encode
        short = [m for m in data.train if len(encode(m.sequence)) <= settings.max_tokens]
        unknown = data.vocabulary.number_of[UNK]
        held_out = [m for m in data.val if unknown not in encode(m.sequence)]
        held_out = [m for m in held_out if len(encode(m.sequence)) <= settings.max_tokens]
        if not short or not held_out:
            raise UsageError(f"no component set has at most {settings.max_tokens} tokens; raise max_tokens")
        labels = [labels_of(m, energies) for m in short]
        self._settings, self._vocabulary = settings, data.vocabulary
        self.conditions = Conditions.of(labels)
        self._texts = [m.sequence for m in short]
        self._wanted = self.conditions.encode([_named(x, self.conditions) for x in labels])
        self._order = BatchOrder([len(encode(t)) for t in self._texts], settings.batch_tokens, 1.0, settings.seed)
        self._val_tokens, self._val_lengths = padded([encode(m.sequence) for m in held_out])
        self._val_wanted = self.conditions.encode([_named(labels_of(m, energies), self.conditions) for m in held_out])
        self._swap = LinkerSwap(short)
        self._known = Known.of(data.nodes.by_key, self._texts)
        torch.manual_seed(settings.seed)
        size = ChemistSettings(
            len(data.vocabulary), len(self.conditions), settings.width, settings.depth, settings.heads
        )
        self.network = Chemist(size)
        self.identity: Mapping[str, Any] = {
            "data_sha256": data.digest, "mofs": len(self._texts), "validation_mofs": len(held_out),
            "labels": dict(zip(self.conditions.names, self.conditions.labels, strict=True)),
        }  # fmt: skip

    def loss(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean negative log-likelihood of a token in nat."""
        texts, wanted = self._shown(self._order.batch(step), generator)
        device = self.network.to_logits.weight.device
        tokens, lengths = (x.to(device) for x in padded([self._vocabulary.encode(t) for t in texts]))
        wanted = self._hidden(wanted, generator).to(device)
        table = self.network(tokens[:, :-1], wanted, Dropout(self._settings.dropout, generator))
        said = said_mask(tokens, lengths)[:, 1:]
        return {"loss": -table.gather(2, tokens[:, 1:, None])[..., 0][said].mean()}

    def validate(self, network: Chemist) -> dict[str, float]:
        """Likelihood on held-out MOFs, given their properties and given none, and what the chemist writes.

        Likelihood of unseen linkers falls long before what is written becomes valid, so `loss`, by which weights are
        kept, is 1 - the share of valid, new and unique component sets; the likelihoods' mean where none are sampled.
        """
        device = network.to_logits.weight.device
        tokens, lengths, given = (x.to(device) for x in (self._val_tokens, self._val_lengths, self._val_wanted))
        said, nothing = said_mask(tokens, lengths).sum(), torch.full_like(given, math.nan)
        with torch.no_grad():
            given, none = (-float(log_probs(network, tokens, lengths, x).sum() / said) for x in (given, nothing))
        losses = {"conditional": given, "unconditional": none}
        count = self._settings.validation_samples
        if not count:
            return {"loss": (given + none) / 2, **losses}
        wanted = self._val_wanted[torch.arange(count) % len(self._val_wanted)]
        wanted[: count // 2] = math.nan
        texts = written(network, self._vocabulary, wanted, step_generator(0, "validation", 0))
        quality = judge(texts, self._known)
        return {"loss": 1.0 - quality.vnu, **losses, "valid": quality.valid, "vnu": quality.vnu}

    def card(self, network: Chemist) -> Mapping[str, Any]:
        """Validity, uniqueness and novelty of what is written."""
        count = self._settings.validation_samples
        quality = card_quality(network, self._vocabulary, self.conditions, self._known, count) if count else None
        return {"written": quality}

    def save(self, folder: Path, network: Chemist) -> str:
        """Write the chemist with vocabulary and statistics of its conditions."""
        return save_chemist(folder, network, self._vocabulary, self.conditions)

    def _shown(self, items: np.ndarray, generator: torch.Generator) -> tuple[list[str], Tensor]:
        """Sequences of these MOFs and their conditions [b, P], some with other linkers, some written from anywhere."""
        texts, wanted = [self._texts[k] for k in items], self._wanted[items]
        chance = torch.rand(2, len(items), generator=generator)
        for row in torch.nonzero(chance[0] < self._settings.swap_share)[:, 0].tolist():
            text, atoms = self._swap(int(items[row]), generator)
            if len(self._vocabulary.encode(text)) <= self._settings.max_tokens:
                texts[row], wanted[row] = text, self.conditions.encode([{"atoms": float(atoms)}])[0]
        for row in torch.nonzero(chance[1] < self._settings.random_smiles)[:, 0].tolist():
            seed = int(torch.randint(2**31 - 1, (), generator=generator))
            texts[row] = rewritten(texts[row], seed, self._vocabulary)
        return texts, wanted

    def _hidden(self, wanted: Tensor, generator: torch.Generator) -> Tensor:
        """Conditions [b, P] with noise, some of them and some rows as a whole hidden."""
        noisy = wanted + self._settings.condition_noise * torch.randn(wanted.shape, generator=generator)
        single = torch.rand(wanted.shape, generator=generator) < self._settings.drop_share
        whole = torch.rand(len(wanted), 1, generator=generator) < self._settings.null_share
        return noisy.masked_fill(single | whole, math.nan)


def _named(labels: Mapping[str, float], conditions: Conditions) -> dict[str, float]:
    return {name: value for name, value in labels.items() if name in conditions.names}
