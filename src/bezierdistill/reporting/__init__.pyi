from .paper import write_exports as write_exports
from .report import write_report as write_report
from .tables import print_arena as print_arena
from .tables import print_rows as print_rows
from .tables import protocol_lines as protocol_lines
