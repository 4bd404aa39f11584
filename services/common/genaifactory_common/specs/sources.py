"""Sources: places that documents of a knowledge base are read from, again and again."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, StringConstraints

from genaifactory_common.engine_specs import Spec
from genaifactory_common.specs.names import Name

SAMPLES = "samples"
"""The sample handbook's name as a source, which no other may have."""
LEAST_SHARE = 0.5


def _own(name: str) -> str:
    if name == SAMPLES:
        raise ValueError(f"'{SAMPLES}' is the sample handbook; choose another name")
    return name


SourceName = Annotated[Name, AfterValidator(_own)]
"""Documents of the source are stored under it: their ids begin with it."""
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class _Source(Spec):
    """What every kind of source has."""

    name: SourceName
    knowledge_base: Name = Field(description="Where its documents are stored, for the tenant whose key reads them.")
    groups: tuple[Name, ...] = Field(
        default=(), max_length=64, description="Only keys with one of these groups see its documents; empty: all do."
    )
    least_share: float = Field(
        default=LEAST_SHARE,
        ge=0,
        le=1,
        description="Documents that are gone from the source are removed only while this share of those stored is "
        "still there; otherwise nothing is changed, since the place may be damaged.",
    )


class _WithPaths(_Source):
    """A source whose documents have paths."""

    include: tuple[Pattern, ...] = Field(
        default=("*",), min_length=1, max_length=64, description="Paths that are read; '*' also matches '/'."
    )
    exclude: tuple[Pattern, ...] = Field(default=(), max_length=64, description="Of these, paths that are not read.")


class FolderSource(_WithPaths):
    """A folder: of a machine, or a volume that is mounted into a pod."""

    type: Literal["folder"]
    path: str = Field(
        pattern=r"^(/|~(/|$))", max_length=4096, description="Where it is for the one who reads it: absolute, or ~/..."
    )

    @property
    def place(self) -> str:
        """Where its documents are, for people."""
        return self.path


class BucketSource(_WithPaths):
    """Objects of S3, Google Cloud Storage, Azure, or a server that speaks one of their protocols."""

    type: Literal["bucket"]
    url: str = Field(
        pattern=r"^(s3|gs|az)://[^/\s?#@]+(/[^\s?#]*)?$",
        max_length=2048,
        description="s3://, gs:// or az://BUCKET/PREFIX. Credentials, region and endpoint are in the environment.",
    )

    @property
    def place(self) -> str:
        """Where its documents are, for people."""
        return self.url


PageUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^/\s?#@]+(/[^\s#]*)?$", max_length=2000)]
"""Of a web page, without user and password."""


class PagesSource(_Source):
    """A list of web pages. Links on them are not followed."""

    type: Literal["pages"]
    urls: tuple[PageUrl, ...] = Field(min_length=1, max_length=1000, description="http(s)://HOST/...")
    private_addresses: bool = Field(
        default=False,
        description="Allow hosts of private networks and of the machine that reads: the pages of an intranet.",
    )
    pause_seconds: float = Field(default=0.5, ge=0, le=60, description="Between two requests to the same host.")

    @property
    def place(self) -> str:
        """Where its documents are, for people."""
        return f"{self.urls[0]} and {len(self.urls) - 1} more" if len(self.urls) > 1 else self.urls[0]


AnySource = Annotated[FolderSource | BucketSource | PagesSource, Field(discriminator="type")]
TYPES = tuple(get_args(each.model_fields["type"].annotation)[0] for each in get_args(get_args(AnySource)[0]))
"""Names of the union's branches, which are in the path of a pydantic error and not in the document."""
