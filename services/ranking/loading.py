"""From a promoted artifact to a model that may serve: read, then asked a question whose answer is known."""

from __future__ import annotations

import structlog

from models.data.schema import FeatureSchema
from models.ranking.export import FILE
from models.ranking.model import RankingModel, RequestScorer
from models.ranking.parity import QUANTISED_TOLERANCE, TOLERANCE, KnownAnswer
from models.ranking.serving import ServingModel, TableBits
from services.storage.artifacts import Artifact


def load_ranking(
    artifact: Artifact,
    schema: FeatureSchema,
    table_bits: TableBits,
    logger: structlog.typing.FilteringBoundLogger,
) -> RequestScorer:
    """Return the model with its exported network, or as torch runs it where the artifact holds no export.

    Raises ValueError where the artifact fits another schema, has no export to read int8 tables, or does not answer here
    as it did in training.
    """
    model = RankingModel.load(artifact.folder, schema)
    known = KnownAnswer.load(artifact.folder)
    served: RequestScorer = model
    runtime = "torch"
    if (artifact.folder / FILE).is_file():
        served, runtime = ServingModel.load(artifact.folder, model, table_bits), "onnxruntime"
    elif table_bits == 8:
        raise ValueError(f"{artifact.folder} has no {FILE}, which int8 tables need; train the model again")
    difference = known.check(served, QUANTISED_TOLERANCE if table_bits == 8 else TOLERANCE)
    logger.info(
        "ranking answers as in training",
        version=artifact.version,
        runtime=runtime,
        table_bits=table_bits,
        largest_difference=difference,
    )
    return served
