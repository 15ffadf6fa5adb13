"""Settings of a deployment: one TOML file, overlaid by SHORTLIST_* variables, checked once at the entry point.

`SHORTLIST_HTTP__PORT` is `port` of `[http]`; `SHORTLIST_DATA_DIR` is the top-level `data_dir`. A key or variable that
names no setting is an error that names the nearest one. Settings are passed down as arguments; nothing is global.
Relative paths are relative to the working directory. The API key is taken from its variable only, never from a file.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

PREFIX = "SHORTLIST_"
CONFIG_VARIABLE = "SHORTLIST_CONFIG"
SECRETS = frozenset({"api_key", "engine_api_key"})
"""Settings that a file may not hold and an error does not show."""

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the key or variable and what was expected."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class HttpSettings(_Section):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 2 * 1024 * 1024
    """Largest request body; a larger one is answered with 413."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""
    access_log: bool = True
    """Write one JSON line per request, without bodies and keys."""


class PipelineSettings(_Section):
    budget_ms: Annotated[int, Field(ge=1, le=60_000)] = 250
    """Time budget of a recommendation that names none, in milliseconds."""
    hydrate_share: Share = 0.3
    """Latest end of hydrate, as a fraction of the budget."""
    retrieve_share: Share = 0.6
    """Latest end of retrieve, as a fraction of the budget."""
    rank_share: Share = 0.9
    """Latest end of rank, as a fraction of the budget."""
    fallback_ms: Annotated[int, Field(ge=1, le=60_000)] = 500
    """Time that a fallback and the reading of item ids may take past the budget; beyond it the answer is 504."""
    log_impressions: bool = True
    """Append an `impression` event per recommended item after the answer."""
    scenarios_interval_s: Annotated[float, Field(gt=0)] = 1.0
    """Seconds between looks at the stored scenarios; the process that was told of an edit knows at once."""
    engine_workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads that rank for requests, at the same time at most."""
    storage_workers: Annotated[int, Field(ge=1, le=256)] = 8
    """Threads that read and write storage for requests, at the same time at most."""

    @model_validator(mode="after")
    def _shares_rise(self) -> PipelineSettings:
        if not self.hydrate_share <= self.retrieve_share <= self.rank_share:
            raise ValueError(
                f"shares must not fall: hydrate_share {self.hydrate_share}, retrieve_share "
                f"{self.retrieve_share}, rank_share {self.rank_share}"
            )
        return self


class RetrievalSettings(_Section):
    url: str | None = None
    """Base URL of a retrieval process; empty: retrieval runs in this process."""
    num_candidates: Annotated[int, Field(ge=1, le=10_000)] = 300
    """Candidates handed to the ranker."""
    popular_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Part of the candidates reserved for the most popular items of all time."""
    recent_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Part of the candidates reserved for the items most popular of late."""
    links_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3
    """Part of the candidates reserved for what learned links reach, where there are any."""
    links_scale: Annotated[float, Field(gt=0.0, le=100.0)] = 0.3
    """What a learned link's weight, in log-odds, is worth beside an inner product, in the order of what links reach."""
    search_threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Threads of one large search."""
    max_concurrent: Annotated[int, Field(ge=1, le=256)] = 16
    """Requests that retrieval works on at the same time at most; their searches share passes over the index."""
    recent_half_life: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}[smhdw]$")] = "7d"
    """Half life of "of late"; the dataset's signal nearest to it is taken."""
    reload_interval_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds between looks for a newly promoted model, with which all items are then embedded beside the index in use
    until they change places."""

    @model_validator(mode="after")
    def _shares_leave_room(self) -> RetrievalSettings:
        shares = {name: getattr(self, name) for name in ("popular_share", "recent_share", "links_share")}
        if sum(shares.values()) > 1.0:
            raise ValueError(f"{' + '.join(f'{name} {share}' for name, share in shares.items())} is more than 1")
        return self


class RankingSettings(_Section):
    url: str | None = None
    """Base URL of a ranking process; empty: ranking runs in this process."""
    torch_threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Threads of one tensor operation, in every process that runs a model."""
    table_bits: Literal[8, 32] = 32
    """Bits of a number in the ranker's embedding tables: 32 as trained; 8 takes three eighths of the memory."""
    reload_interval_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds between looks for a newly promoted model, which then replaces the one in use between requests."""
    offsets_interval_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds between writes of the ranker's popularity offsets; after a crash, later events are counted again."""


class IngestSettings(_Section):
    url: str | None = None
    """Base URL of an ingest process; empty: ingest runs in this process."""
    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 512
    """Most stream entries applied at once."""
    wait_timeout_ms: Annotated[int, Field(ge=1, le=60_000)] = 1000
    """How long `wait_for=visible` waits where the request does not say, in milliseconds."""
    max_future_ms: Annotated[int, Field(ge=0)] = 86_400_000
    """How far an event's time may lie in the future, in milliseconds."""
    snapshot_interval_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds between index snapshots; one is skipped when nothing changed."""
    archive_interval_s: Annotated[float, Field(gt=0)] = 10.0
    """Longest time in seconds that events and documents wait before they are archived as files."""
    trim_streams: bool = True
    """Drop stream entries that every consumer and every kept snapshot has behind it."""


class LlmSettings(_Section):
    enabled: bool = False
    """Rerank with the promoted language model, and answer /v1/score; without one there is nothing to turn on."""
    url: str | None = None
    """Base URL of an llm process; empty: the language model runs in this process."""
    engine: Literal["local", "vllm"] = "local"
    """Who computes: this process, or a vLLM or SGLang server that has the artifact's folder as its model."""
    engine_url: str | None = None
    """Base URL of that server."""
    engine_model: str | None = None
    """The model's name at that server; empty: the only one."""
    engine_api_key: SecretStr | None = None
    """Key that that server asks for. Variable only."""
    precision: Literal["fp32", "bf16", "int8"] = "bf16"
    """What the local engine computes in."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Threads of one pass of the local engine."""
    cache_bytes: Annotated[int, Field(ge=0)] = 268_435_456
    """Memory for prompts that were read before."""
    max_candidates: Annotated[int, Field(ge=1, le=500)] = 30
    """Candidates that are reranked at most; how many there is time for is decided per request."""
    max_prompt_tokens: Annotated[int, Field(ge=1, le=131_072)] = 1024
    """Tokens of a prompt before its candidates at most; a task may say fewer."""
    rerank_share: Share = 0.95
    """Latest end of rerank, as a fraction of the request's budget."""
    score_budget_ms: Annotated[int, Field(ge=1, le=60_000)] = 5000
    """Time budget of a question to /v1/score or /generative_scoring that names none, in milliseconds."""

    @model_validator(mode="after")
    def _server_has_a_url(self) -> LlmSettings:
        if self.engine == "vllm" and not self.engine_url:
            raise ValueError("engine vllm needs engine_url")
        return self


class Settings(_Section):
    dataset: Path = Path("configs/movielens.toml")
    """Description of the dataset that is served."""
    data_dir: Path = Path("data")
    """Folder of the embedded log, the archive, the artifacts and the snapshots."""
    redis_url: str | None = None
    """Redis or Valkey to use; empty: an embedded Valkey with its files in `data_dir`."""
    redis_timeout_ms: Annotated[int, Field(ge=100, le=60_000)] = 5000
    """Longest time in milliseconds to connect to the log or to wait for its answer."""
    api_key: SecretStr | None = None
    """Key that every /v1 and /internal request must present, and those in vLLM's shapes; empty: none is asked for.
    Variable only."""
    http: HttpSettings = HttpSettings()
    pipeline: PipelineSettings = PipelineSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    ranking: RankingSettings = RankingSettings()
    ingest: IngestSettings = IngestSettings()
    llm: LlmSettings = LlmSettings()

    @model_validator(mode="after")
    def _rerank_comes_after_rank(self) -> Settings:
        if self.llm.enabled and self.llm.rerank_share < self.pipeline.rank_share:
            raise ValueError(
                f"shares must not fall: pipeline.rank_share {self.pipeline.rank_share}, "
                f"llm.rerank_share {self.llm.rerank_share}"
            )
        return self


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read settings from a TOML file and the variables.

    path: the file; None takes the variable SHORTLIST_CONFIG, and without that the defaults.

    Raises SettingsError for a missing or unreadable file, an unknown key or variable, and a value out of range.
    """
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    document = _read(path) if path is not None else {}
    for name in ("api_key", "llm.engine_api_key"):
        section, _, key = name.rpartition(".")
        inside = document.get(section, {}) if section else document
        if isinstance(inside, dict) and key in inside:
            raise SettingsError(f"{path}: {name} belongs in the variable {variable_of(name)}, not in a file")
    _check_keys(document, str(path))
    origins = _overlay(document, environ)
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(entry, path, origins) for entry in error.errors())) from None


def setting_names() -> list[str]:
    """Every setting as its dotted TOML name, in order."""
    names: list[str] = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section):
            names += [f"{name}.{key}" for key in field.annotation.model_fields]
        else:
            names.append(name)
    return names


def variable_of(name: str) -> str:
    """The variable of a dotted setting name: `http.port` is SHORTLIST_HTTP__PORT."""
    return PREFIX + name.replace(".", "__").upper()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        beside = [near.name for near in path.parent.glob("*.toml")]
        near = difflib.get_close_matches(path.name, beside, 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise SettingsError(f"settings file {path} does not exist{hint}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None


def _check_keys(document: Mapping[str, Any], where: str) -> None:
    known = setting_names()
    for name, value in document.items():
        names = [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
        for dotted in names:
            if dotted not in known:
                raise SettingsError(f"{where}: unknown setting {dotted!r}{_nearest(dotted, known)}")


def _overlay(document: dict[str, Any], environ: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Write the variables into the document; return which place each one set."""
    names = {variable_of(name): tuple(name.split(".")) for name in setting_names()}
    origins: dict[tuple[str, ...], str] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE:
            continue
        if variable not in names:
            raise SettingsError(f"unknown variable {variable}{_nearest(variable, [*names, CONFIG_VARIABLE])}")
        place = names[variable]
        origins[place] = variable
        section = document
        for part in place[:-1]:
            section = section.setdefault(part, {})
        # An empty variable is how a shell or a compose file says "not set".
        section[place[-1]] = text if text else _default_of(place)
    return origins


def _default_of(place: tuple[str, ...]) -> Any:
    value: Any = Settings()
    for part in place:
        value = getattr(value, part)
    return value


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _explain(entry: Mapping[str, Any], path: Path | None, origins: Mapping[tuple[str, ...], str]) -> str:
    place = tuple(str(part) for part in entry["loc"])
    origin = origins.get(place) or (f"{path}: {'.'.join(place)}" if place else str(path))
    secret = bool(place) and place[-1] in SECRETS
    value = "" if secret else f" is {json.dumps(_without_secrets(entry.get('input')), default=str)}"
    return f"{origin}{value}: {entry['msg'].removeprefix('Value error, ')}"


def _without_secrets(value: Any) -> Any:
    """The input of a section as an error may show it."""
    if isinstance(value, Mapping):
        return {name: "***" if name in SECRETS else _without_secrets(inner) for name, inner in value.items()}
    return value
