"""What `import cfx` offers beside models: the commands as functions. Any crystals in, tables and structures out."""
