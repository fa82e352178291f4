"""Parses the `az` lines of a page by the Azure CLI's own parser. Nothing is sent anywhere.

Usage: python az_lines.py PAGE…, by a Python that has the package azure-cli.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile

os.environ["AZURE_CONFIG_DIR"] = tempfile.mkdtemp(prefix="transload-az-")
os.environ["AZURE_CORE_COLLECT_TELEMETRY"] = "no"
os.environ["AZURE_EXTENSION_USE_DYNAMIC_INSTALL"] = "no"

from azure.cli.core import get_default_cli  # noqa: E402


def lines(page):
    """The commands that begin with `az`: in blocks of a shell, in `$(…)`, and in single backticks."""
    text = open(page, encoding="utf-8").read()
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            found += re.findall(r"\$\((az [^)]*)\)", line)
            found += [line] if line.startswith("az ") else []
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return found + [line for line in re.findall(r"`(az [^`]*)`", prose) if " --" in line]


def parse(line):
    """Raises SystemExit if az would refuse it before it does anything."""
    arguments = shlex.split(re.sub(r"\$\w+", "value", line))[1:]
    az = get_default_cli()
    invocation = az.invocation_cls(
        cli_ctx=az, parser_cls=az.parser_cls, commands_loader_cls=az.commands_loader_cls, help_cls=az.help_cls
    )
    az.invocation = invocation
    loader = invocation.commands_loader
    loader.load_command_table(arguments)
    command = invocation._rudimentary_get_command(arguments)  # how az itself finds it
    if command not in loader.command_table:
        sys.exit(f"az has no command {command!r}")
    loader.command_table = {command: loader.command_table[command]}
    loader.command_name = command
    invocation.data["command_string"] = command
    loader.load_arguments(command)
    az.raise_event("CommandLoader.OnLoadArguments", cmd_tbl=loader.command_table)
    invocation.parser.load_command_table(loader)
    invocation.parser.parse_args(arguments)


def main():
    # What must be refused, or the check would prove nothing.
    for wrong in ["az acr create --name x --resource-group y --sku Gold", "az acr create --nmae x", "az acr invent --name x"]:
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                parse(wrong)
        except SystemExit:
            continue
        sys.exit(f"the parser takes {wrong!r}")
    failed, count = [], 0
    for page in sys.argv[1:]:
        for line in lines(page):
            count += 1
            try:
                parse(line)
                print(f"ok: {line}")
            except SystemExit as error:
                failed.append(line)
                print(f"REFUSED: {line}: {error}")
    if failed or count < 10:
        sys.exit(f"{len(failed)} of {count} az lines are refused")
    print(f"{count} az lines parse")


main()
