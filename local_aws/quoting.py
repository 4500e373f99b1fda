"""Quote text for the files and options that Java and Spark parse."""

import re

# No program, options string, search path, URI or list gives these characters a meaning of their own.
_PLAIN = re.compile(r"[A-Za-z0-9_./+@-]+")
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\f": r"\f"})


def is_plain(text: str) -> bool:
    """Return whether text means the same with and without quotes, wherever it is inserted.

    >>> is_plain("/data/j-1"), is_plain("/my data/j-1")
    (True, False)
    """
    return _PLAIN.fullmatch(text) is not None


def java_options(*options: str) -> str:
    r"""Return options of a JVM as one text that Spark splits into the same options.

    >>> print(java_options("-Dx=/data", '-Dy=/my "data"'))
    -Dx=/data "-Dy=/my \"data\""
    """
    return " ".join(option if _is_plain_option(option) else _in_double_quotes(option) for option in options)


def _is_plain_option(option: str) -> bool:
    return is_plain(option.replace("=", "").replace(":", ""))


def _in_double_quotes(text: str) -> str:
    return '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'


def properties_line(key: str, value: str) -> str:
    r"""Return the line of a Java properties file that sets a key to a value.

    >>> properties_line("spark.x", "a b"), properties_line("a:b", " \\d")
    ('spark.x a b\n', 'a\\:b \\ \\\\d\n')
    """
    key, value = key.translate(_ESCAPES), value.translate(_ESCAPES)
    escaped_key = re.sub(r"[ :=#!]", r"\\\g<0>", key)
    escaped_value = re.sub(r"^ ", r"\\ ", value)
    return f"{escaped_key} {escaped_value}\n"
