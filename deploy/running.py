"""The program while it runs, for check.py."""

import base64
import contextlib
import re
import subprocess
import urllib.error
import urllib.request


@contextlib.contextmanager
def running(program, *arguments):
    """The program while it runs; what is called with a text gives the next URL that it tells after that."""
    process = subprocess.Popen([program, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        yield lambda after: next(line for line in process.stderr if after in line).split(after)[1].strip()
    finally:
        process.terminate()
        process.wait(timeout=30)


def get(url, user=None):
    """Status and text; of `user`, as NAME:PASSWORD."""
    request = urllib.request.Request(url)
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def plain(name):
    """A metric by the name of its family."""
    return re.sub("_(total|bucket|sum|count)$", "", name)


def metrics(url):
    """Those that it tells."""
    return {plain(name) for name in re.findall(r"^# TYPE (\S+)", get(url + "/metrics")[1], re.M)}
