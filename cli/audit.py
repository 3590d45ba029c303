"""`kgl audit`: labels that look wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.arguments import DataArguments
from ..errors import InputError, format_count
from .labelled import POSITIONAL, SOURCES, LabelledArguments, output_of, read, run_or_images_to_flags
from .parser import CommandHelp, HelpGroup, parse_settings, run_command


_PRINTED = 5


@dataclass
class AuditArguments:
    """Settings of the audit."""

    shown: int = field(default=60, metadata={"help": "Suspicious labels on the page; audit.csv has all."})

    def __post_init__(self) -> None:
        if self.shown < 1:
            raise InputError(f"--shown {self.shown}: it must be at least 1.")


HELP = CommandHelp(
    command="kgl audit",
    usage="RUN|IMAGES [--SETTING VALUE ...]",
    description="List labels that look wrong, the least trusted first: what classifiers that have not seen the image "
    "say, near-duplicates with other labels, masks that contradict the label. Writes audit.csv and audit.html.",
    example="kgl audit images",
    positional=POSITIONAL,
    groups=(
        HelpGroup("audit", AuditArguments),
        HelpGroup("images and output", LabelledArguments),
        HelpGroup("data", DataArguments),
    ),
)


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse the arguments into AuditArguments, LabelledArguments and DataArguments."""
    return parse_settings(HELP, argv, run_or_images_to_flags, SOURCES)


def run(args: AuditArguments, labelled_args: LabelledArguments, data_args: DataArguments) -> None:
    """Audit the labels."""
    labelled = read(labelled_args, data_args)
    from ..labelling.audit import run_audit
    from ..labelling.output import claimed_output

    output, heads = output_of(labelled_args, labelled, "audit"), labelled_args.heads
    with claimed_output(output, "audit", labelled.settings() | {"heads": heads, "shown": args.shown}):
        table = run_audit(labelled, output, args.shown, heads)
    print(f"{len(table)} of {format_count(len(labelled.images), 'label')} in doubt, the least trusted first.")
    for row in table.head(_PRINTED).itertuples():
        print(f"  {row.rank}. {row.file}: {row.label}, perhaps {row.suggested_label} ({row.reason})")
    print(f"Images side by side: {output / 'audit.html'}, all rows: {output / 'audit.csv'}")
    if len(table) and labelled.run is not None:
        print("Correct what is wrong and train again with another --output_dir: a finished run is not overwritten.")


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run_command(HELP.command, lambda: run(*parse(argv)))
