/* Preloaded into the game's client and into its X server: ends the process when the one that started it is gone, however
 * that came about. LIFELINE_OWNER is that one's process id; without it nothing happens.
 *
 * PR_SET_PDEATHSIG would be shorter, but it fires when the owner's *thread* ends.
 */
#define _XOPEN_SOURCE 700
#define _DEFAULT_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOOKS_A_SECOND 5
#define SECONDS_TO_END 1

static pid_t owner;

/* Not nanosleep, which lockstep.c has its own idea of. */
static void sleep_seconds(double seconds) {
    struct timespec span = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &span, NULL);
}

static void *watch(void *unused) {
    (void)unused;
    while (getppid() == owner)
        sleep_seconds(1.0 / LOOKS_A_SECOND);
    kill(getpid(), SIGTERM); /* an X server removes its socket */
    sleep_seconds(SECONDS_TO_END);
    kill(getpid(), SIGKILL);
    return NULL;
}

__attribute__((constructor)) static void begin(void) {
    const char *number = getenv("LIFELINE_OWNER");
    pthread_t thread;
    if (!number)
        return;
    owner = (pid_t)atol(number);
    unsetenv("LD_PRELOAD"); /* this is for this process, not for its children */
    unsetenv("LIFELINE_OWNER");
    if (pthread_create(&thread, NULL, watch, NULL))
        _exit(70);
    pthread_detach(thread);
}
