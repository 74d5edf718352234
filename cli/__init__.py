"""The command line: parses and prints, and calls one public function a command."""
