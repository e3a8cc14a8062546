"""One task per file, registered by `@task`."""
