"""An agent with a memory, taught by PPO: acting and learning in one compiled loop, seeds at once.

Run:      python -m experiments.recurrent_ppo
gymnax:   python -m experiments.recurrent_ppo --environment CartPole-v1 --see 0,2
Own:      python -m experiments.recurrent_ppo --environment my_module:make_environment
Go on:    python -m experiments.recurrent_ppo --out RUN --resume
Play:     python -m experiments.recurrent_ppo play RUN
Compare:  python -m experiments.recurrent_ppo compare RUN RUN --out returns.png
"""
