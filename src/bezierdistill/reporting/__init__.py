"""Results for people: tables in the terminal, pictures, and one self-contained HTML page a run."""

from bezierdistill.reporting.report import write_report
from bezierdistill.reporting.tables import print_arena, print_rows, protocol_lines

__all__ = ["print_arena", "print_rows", "protocol_lines", "write_report"]
