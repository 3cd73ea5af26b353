"""The versions of what computes the results."""

from importlib import metadata

# The same TensorFlow, of the same version and import name: for any machine, and for CPUs alone.
_TENSORFLOW = ("tensorflow", "tensorflow-cpu")


def version(name: str) -> str:
    """Return the version of an installed distribution; of TensorFlow, which build it is, too.

    Two builds of one version may compute other bits.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    if name != "tensorflow":
        return metadata.version(name)
    for build in _TENSORFLOW:
        try:
            found = metadata.version(build)
        except metadata.PackageNotFoundError:
            continue
        return found if build == name else f"{found} ({build})"
    raise metadata.PackageNotFoundError(name)
