"""The state graph: reason, fan out, merge."""
