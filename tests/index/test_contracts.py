"""The contract suite over each index that can run here."""

import sys
import types
from dataclasses import replace

import pytest

from index.config import IndexConfig
from index.live import LiveIndex
from tests.index.contracts import IndexContract


class TestLiveIndex(IndexContract):
    def make(self, config):
        return LiveIndex(config)


@pytest.mark.parametrize("settings", ["int4", "rotated int8", "rotated int4", "signs"])
class TestKindsOfCodes(IndexContract):
    """What is kept beside or in place of the plain int8 codes changes no answer."""

    @pytest.fixture(autouse=True)
    def _choose(self, settings):
        self.settings = {
            "int4": {"codes": "int4"},
            "rotated int8": {"rotate": True},
            "rotated int4": {"codes": "int4", "rotate": True},
            "signs": {"signs": "rotated_sign"},
        }[settings]

    def make(self, config):
        return LiveIndex(replace(config, **self.settings))


class TestFaissIndex(IndexContract):
    def make(self, config):
        pytest.importorskip("faiss", reason="neither faiss-cpu nor faiss-gpu is installed")
        from index.faiss_index import FaissIndex

        return FaissIndex(config)


class TestFaissIndexOnGpu(IndexContract):
    can_filter = False

    def make(self, config):
        faiss = pytest.importorskip("faiss", reason="neither faiss-cpu nor faiss-gpu is installed")
        if faiss.get_num_gpus() == 0:
            pytest.skip("Faiss sees no GPU")
        from index.faiss_index import FaissIndex

        return FaissIndex(config, device="gpu")


@pytest.mark.parametrize("installed", [None, types.ModuleType("faiss")])
def test_without_faiss_the_error_says_what_to_install(monkeypatch, installed):
    """None: not installed. An empty module: what is left when one faiss package was removed from over the other."""
    from index.faiss_index import FaissIndex

    monkeypatch.setitem(sys.modules, "faiss", installed)
    with pytest.raises(ImportError, match=r"shortlist\[cpu\].*never both"):
        FaissIndex(IndexConfig(dim=2))


def test_what_faiss_cannot_keep_is_refused():
    pytest.importorskip("faiss", reason="neither faiss-cpu nor faiss-gpu is installed")
    from index.faiss_index import FaissIndex

    with pytest.raises(ValueError, match="signals"):
        FaissIndex(IndexConfig(dim=2, signals=("day",)))


def test_a_certified_answer_is_common_on_ordinary_data():
    """`exact` False everywhere would pass the contracts and be of no use."""
    import numpy as np

    pytest.importorskip("faiss", reason="neither faiss-cpu nor faiss-gpu is installed")
    from index.faiss_index import FaissIndex

    rng = np.random.default_rng(0)
    index = FaissIndex(IndexConfig(dim=16))
    index.upsert(np.arange(5000), rng.standard_normal((5000, 16)), [{}] * 5000)
    assert all(index.search(query, 10).exact for query in rng.standard_normal((20, 16)))
