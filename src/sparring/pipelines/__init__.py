"""What is done before reinforcement, from models and problems: teachers are asked, a policy is warmed up."""
